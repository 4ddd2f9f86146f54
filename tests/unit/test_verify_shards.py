"""``tools/verify_shards.py`` finds all that is wrong, and says where."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.tiny_data import write_shards
from support.tools import run_tool
from toy_data import CODEBOOK_SIZE, member_ends, npy, toy_sample, toy_samples, write_folder

from megatron_aia.shards import index as index_module
from megatron_aia.shards.checksum import checksum, dump_with_checksum
from megatron_aia.shards.index import open_index


def verify(*arguments: object) -> tuple[int, str, str]:
    return run_tool("verify_shards", *arguments, "--num-workers", 0)


def sealed(sample: dict) -> dict:
    """Give a sample the checksums that the writer gives it."""
    for entry in sample["json"]["codes"]:
        entry["crc32"] = checksum(sample[entry["member"]])
    return {**sample, "json": dump_with_checksum(sample["json"])}


def listed(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("family", ["emu3", "janus_pro"])
def test_a_whole_folder(tmp_path: Path, family: str) -> None:
    folder = write_shards(tmp_path / "data", family=family)
    code, out, err = verify(folder, "--decode")
    assert (code, err) == (0, "")
    assert "2 shards" in out and "8 generation, 8 mixed, 8 text, 8 understanding" in out
    assert "no problem found" in out and not (folder / ".index").exists()


def bad_samples() -> list[dict]:
    good = [toy_sample(f"good{i}", "text", "a", "b") for i in range(3)]
    image = [toy_sample(f"image{i}", "understanding", "<image>q", "a") for i in range(6)]
    image[0]["emu3.npy"] = npy(np.full((2, 3), 100, np.uint16))
    image[1]["emu3.npy"] = npy(np.zeros((2, 3), np.int32))
    image[2]["emu3.npy"] = b"words"
    del image[3]["emu3.npy"]
    image[4]["json"]["task"] = "painting"
    image[5]["json"] = b'{"task": '
    return [good[0], *image, good[1], {"__key__": "none", "txt": b"words"}, good[2], good[0]]


def test_all_problems_are_found_and_listed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", bad_samples(), samples_per_shard=7)
    code, out, err = verify(
        folder, "--codebook-size", CODEBOOK_SIZE, "--repair-list", tmp_path / "list.jsonl"
    )
    assert (code, err) == (1, "")
    problems = listed(tmp_path / "list.jsonl")
    assert [(p["key"], p["kind"]) for p in problems] == [
        ("image3", "missing member"),
        ("image4", "json"),
        ("image5", "json"),
        ("image0", "codes"),
        ("image1", "codes"),
        ("image2", "codes"),
        ("none", "missing member"),
        ("good0", "duplicate key"),
    ]
    assert "8 problems" in out and "code 100, outside a codebook of 100" in out
    for problem in problems:
        ends = member_ends(Path(problem["shard"]))
        begins = [0, *(end for _, _, end in ends)]
        if problem["kind"] == "duplicate key":
            begins = [offset for _, offset, _ in ends]
        keys = {begin: end[0].split(".")[0] for begin, end in zip(begins, ends, strict=False)}
        assert keys[problem["offset"]] == problem["key"] and problem["remedy"]


def test_a_damaged_shard_does_not_hide_the_rest(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", toy_samples("mixed", 24), samples_per_shard=6)
    first, second, third, fourth = sorted(folder.glob("*.tar"))
    damaged = bytearray(first.read_bytes())
    damaged[member_ends(first)[2][1] - 400] ^= 4  # the third of three members
    first.write_bytes(damaged)
    second.write_bytes(second.read_bytes()[: member_ends(second)[9][1] + 5])
    third.write_bytes(third.read_bytes() + bytes(1024) + first.read_bytes())
    fourth.write_bytes(b"")
    code, _, _ = verify(folder, "--repair-list", tmp_path / "list.jsonl")
    assert code == 1
    found = [(Path(p["shard"]).name, p["kind"]) for p in listed(tmp_path / "list.jsonl")]
    assert found[:2] == [("part-00000.tar", "header"), ("part-00000.tar", "missing member")]
    assert found[2] == ("part-00001.tar", "cut")
    assert ("part-00002.tar", "trailing data") in found and ("part-00003.tar", "cut") in found
    keys = {p["key"] for p in listed(tmp_path / "list.jsonl") if p["kind"] == "duplicate key"}
    assert len(keys) == 5, "samples behind the end mark are found too"


def test_checksums_are_compared(tmp_path: Path) -> None:
    samples = [sealed(toy_sample(f"k{i}", "understanding", "<image>q", "a")) for i in range(4)]
    folder = write_folder(tmp_path / "data", samples)
    assert verify(folder)[0] == 0
    shard = folder / "part-00000.tar"
    whole = shard.read_bytes()
    flips = {"checksum": "k1.emu3.npy", "json": "k2.json"}
    damaged = bytearray(whole)
    for name, offset, _ in member_ends(shard):
        if name in flips.values():
            damaged[offset + 137] ^= 1
    shard.write_bytes(damaged)
    verify(folder, "--repair-list", tmp_path / "list.jsonl")
    assert {p["kind"]: f"{p['key']}" for p in listed(tmp_path / "list.jsonl")} == {
        kind: name.split(".")[0] for kind, name in flips.items()
    }
    # A flip in the name of the checksum's field leaves a JSON that has none.
    damaged = bytearray(whole)
    damaged[{n: o for n, o, _ in member_ends(shard)}["k3.json"] + 3] ^= 1
    shard.write_bytes(damaged)
    code, out, _ = verify(folder)
    assert code == 1 and "sample k3: its json has no checksum, unlike others" in out


def test_pictures_are_decoded_on_demand(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image_module.new("RGB", (40, 30)).save(file, "PNG")
    samples = []
    for key, contents in (("whole", file.getvalue()), ("cut", file.getvalue()[:60])):
        sample = toy_sample(key, "understanding", "<image>q", "a")
        del sample["emu3.npy"]
        sample["json"] |= {"codes": [], "images": [{"member": "png"}]}
        samples.append({**sample, "png": contents})
    folder = write_folder(tmp_path / "data", samples)
    assert verify(folder)[0] == 0
    code, out, _ = verify(folder, "--decode")
    assert code == 1 and "1  picture" in out and "sample cut: png is no picture" in out


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("{", "does not parse"),
        ("[]", "is no object"),
        ('{"num_samples": {"text": 4}}', "it counts {'text': 4} samples"),
        ('{"num_samples": 7}', "it counts 7 samples"),
        ('{"shards": [{"name": "part-00000.tar", "size": 5}]}', "and 5 by dataset.json"),
        (
            '{"shards": [{"name": "gone.tar", "size": 5}]}',
            "gone.tar: is in the list of dataset.json, and is not there",
        ),
        ('{"shards": []}', "part-00000.tar: is not in the list"),
        ('{"shards": 3}', "'shards' is not a list"),
        ('{"codebook_size": 5}', "outside a codebook of 5"),
    ],
)
def test_dataset_json_that_does_not_fit(tmp_path: Path, description: str, words: str) -> None:
    folder = write_folder(tmp_path / "data", toy_samples("generation", 5))
    (folder / "dataset.json").write_text(description)
    code, out, _ = verify(folder)
    assert code == 1 and words in out


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ((tmp_path / "nowhere",), "no such folder"),
        ((tmp_path / "empty",), "no *.tar shards"),
        ((tmp_path, "--codebook-size", 0), "--codebook-size 0 is out of range"),
        ((), "no folder is given"),
    ):
        code, _, err = run_tool("verify_shards", *arguments)
        assert code == 2 and err.count("\n") == 1 and words in err


def test_an_unreadable_shard_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "data", toy_samples("text", 12))
    pread = os.pread

    def failing(descriptor: int, size: int, offset: int) -> bytes:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.endswith("part-00001.tar") and offset > 2000:
            raise OSError(5, "Input/output error")
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    code, out, _ = verify(folder)
    assert code == 1 and "1  unreadable" in out and "Input/output error" in out


def test_the_index_is_left_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "data", toy_samples("mixed", 20))
    expected = open_index(folder, tmp_path / "elsewhere")
    code, out, _ = verify(folder, "--write-index")
    assert code == 0 and "index: written" in out
    monkeypatch.setattr(index_module, "walk_shard", None)
    index = open_index(folder)
    assert index.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(index.table.member_offsets, expected.table.member_offsets)

    (folder / "part-00001.tar").write_bytes(b"")
    code, out, _ = verify(folder, "--write-index", "--data-cache-path", tmp_path / "cache")
    assert code == 1 and "index: none" in out and not (tmp_path / "cache").exists()


def test_processes_change_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", bad_samples(), samples_per_shard=2)
    lists = []
    for num_workers in (0, 1, 3):
        path = tmp_path / f"{num_workers}.jsonl"
        run_tool("verify_shards", folder, "--repair-list", path, "--num-workers", num_workers)
        lists.append(path.read_text())
    assert lists[0] and lists[0] == lists[1] == lists[2]


def test_what_verify_passes_tarfile_reads_alike(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "data")
    assert verify(folder)[0] == 0
    index = open_index(folder)
    table = index.table
    places = set(zip(table.member_offsets.tolist(), table.member_sizes.tolist(), strict=True))
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as archive:
            assert {(i.offset_data, i.size) for i in archive} <= places
