import json
import os
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from toy_data import (
    CODEBOOK_SIZE,
    ToyEncoder,
    member_ends,
    npy,
    toy_encoder,
    toy_sample,
    toy_samples,
    write_folder,
    write_shard,
)

from megatron_aia.aia.roles import Task
from megatron_aia.data.lengths import token_lengths
from megatron_aia.shards import index as index_module
from megatron_aia.shards.index import open_index
from megatron_aia.shards.raw_sample import CorruptSampleError
from megatron_aia.shards.shard import LocalShard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = [
        s for t in ("generation", "understanding", "text", "mixed") for s in toy_samples(t, 5)
    ]
    return write_folder(tmp_path / "data", samples, samples_per_shard=8)


def refuse(folder: Path, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        open_index(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in (*words, "rebuild or delete the shard"):
        assert word in message, message


def test_reads_what_was_written(folder: Path) -> None:
    index = open_index(folder)
    assert len(index) == 20
    assert index.tasks.tolist() == [1] * 5 + [2] * 5 + [0] * 5 + [3] * 5
    sample = index.read(5, CODEBOOK_SIZE)
    assert sample.key == "part-00000.tar/understanding000" == index.key(5)
    assert sample.task is Task.UNDERSTANDING
    assert [(t.role, t.text) for t in sample.turns] == [("human", "<image>what"), ("gpt", "w")]
    assert sample.codes[0].dtype == np.int64 and sample.codes[0].shape == (2, 3)
    assert index.read(10, CODEBOOK_SIZE).codes == ()
    assert len(index.read(19, CODEBOOK_SIZE).codes) == 2


def test_images_come_in_the_order_of_their_tags(tmp_path: Path) -> None:
    sample = toy_sample("a", "mixed", "<image>" * 11, "x")
    for i in range(11):
        sample[f"{i}.emu3.npy"] = npy(np.full((2, 3), i, np.uint16))
    sample["jpg"] = b"\xff\xd8 never decoded"
    write_shard(tmp_path / "a.tar", [sample])
    codes = open_index(tmp_path).read(0, CODEBOOK_SIZE).codes
    assert [int(image[0, 0]) for image in codes] == list(range(11))


def test_index_is_kept_until_a_shard_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_index(folder)
    scanned: list[str] = []
    walk = index_module.walk_shard
    monkeypatch.setattr(
        index_module, "walk_shard", lambda shard: scanned.append(shard.name) or walk(shard)
    )
    again = open_index(folder)
    assert not scanned and again.fingerprint == first.fingerprint
    assert again.read(7, CODEBOOK_SIZE).turns == first.read(7, CODEBOOK_SIZE).turns

    write_shard(folder / "part-00001.tar", toy_samples("text", 3, "new"))
    changed = open_index(folder)
    assert len(scanned) == 3 and len(changed) == 15
    assert changed.fingerprint != first.fingerprint
    with pytest.raises(ValueError, match="changed since it was indexed") as caught:
        first.read(9, CODEBOOK_SIZE)
    assert not isinstance(caught.value, CorruptSampleError)

    for kept in (folder / ".index").glob("table-*.npz"):
        kept.write_bytes(kept.read_bytes()[:100])
    assert len(open_index(folder)) == 15 and len(scanned) == 6
    assert not [path for path in (folder / ".index").iterdir() if path.name.startswith(".")]


def save_table(path: Path, **changes: np.ndarray) -> None:
    with np.load(path) as columns:
        table = {name: columns[name] for name in columns.files}
    np.savez(path, **{name: changes.get(name, array) for name, array in table.items()})


@pytest.mark.parametrize(
    "changes",
    [
        {"member_sizes": np.full(40, 10**12)},
        {"member_sizes": np.full(40, -1)},
        {"member_offsets": np.full(40, 10**15)},
        {"member_offsets": np.zeros(39, np.int64)},
        {"shard_numbers": np.full(20, 7, np.int32)},
        {"shard_numbers": np.full(20, -1, np.int32)},
        {"member_starts": np.arange(21)[::-1].copy()},
        {"key_starts": np.zeros(21, np.int64)},
        {"tasks": np.zeros((20, 1), np.uint8)},
        {"tasks": np.zeros(20, np.float64)},
    ],
)
def test_a_kept_index_of_a_stranger_is_made_again(folder: Path, changes: dict) -> None:
    index = open_index(folder)
    (path,) = (folder / ".index").glob("table-*.npz")
    assert len(index.table.member_sizes) == 40
    save_table(path, **changes)
    again = open_index(folder)
    np.testing.assert_array_equal(again.table.member_sizes, index.table.member_sizes)
    np.testing.assert_array_equal(again.tasks, index.tasks)
    with np.load(path) as columns:
        np.savez_compressed(path, **{name: columns[name] for name in columns.files})
    assert len(open_index(folder)) == 20
    header = folder / ".index" / "index.json"
    for words in ("[]", "7", "[" * 100_000, '{"shards": 1}'):
        header.write_text(words)
        assert len(open_index(folder)) == 20


def test_fingerprint_is_that_of_a_copy_and_changes_with_a_word(tmp_path: Path) -> None:
    for name, word in (("a", "cat"), ("b", "cat"), ("c", "dog")):
        write_shard(tmp_path / name / "x.tar", [toy_sample("k", "text", word, "answer")])
    a, b, c = (open_index(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_a_folder_that_cannot_be_written_is_indexed_in_memory(folder: Path) -> None:
    (folder / ".index").write_text("a file where the cache would be")
    index = open_index(folder)
    assert len(index) == 20
    assert token_lengths(index, toy_encoder, CODEBOOK_SIZE).shape == (20,)


def test_every_cut_of_a_shard_is_found(folder: Path) -> None:
    shard = folder / "part-00001.tar"
    whole = shard.read_bytes()
    ends = member_ends(shard)
    same_sample = [
        before.split(".")[0] == after.split(".")[0]
        for (before, _, _), (after, _, _) in pairwise(ends)
    ]
    inside_sample = ends[same_sample.index(True)][2]
    between_samples = ends[same_sample.index(False)][2]
    cuts = {
        "inside a member": ends[3][1] + 10,
        "between the members of a sample": inside_sample,
        "between samples": between_samples,
        "inside a header": between_samples + 100,
        "before the end mark": ends[-1][2],
        "everything": 0,
    }
    for size in cuts.values():
        shard.write_bytes(whole[:size])
        refuse(folder, "part-00001.tar", "cut short")


def test_a_shard_is_never_read_in_part(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", toy_samples("mixed", 2))
    whole = shard.read_bytes()
    end = member_ends(shard)[-1][2]
    for size in range(0, len(whole), 128):
        shard.write_bytes(whole[:size])
        if size < end + 512:
            refuse(tmp_path, "a.tar", "cut short")
        else:
            assert len(open_index(tmp_path)) == 2


@pytest.mark.parametrize("garbage", [b"\xa5" * 512, b"\x00" * 512], ids=["noise", "zeros"])
def test_garbled_header_is_found(folder: Path, garbage: bytes) -> None:
    shard = folder / "part-00000.tar"
    whole = bytearray(shard.read_bytes())
    header = member_ends(shard)[4][2]
    whole[header : header + 512] = garbage
    shard.write_bytes(whole)
    refuse(folder, "part-00000.tar", f"byte {header}")


def test_duplicate_keys_are_found(tmp_path: Path) -> None:
    sample = toy_sample("same", "text", "a", "b")
    other = toy_sample("other", "text", "a", "b")
    write_folder(tmp_path / "two shards", [sample, other, sample], samples_per_shard=2)
    refuse(tmp_path / "two shards", "part-00001.tar", "same", "part-00000.tar")
    write_folder(tmp_path / "one shard", [sample, other, sample])
    refuse(tmp_path / "one shard", "same")
    write_folder(tmp_path / "side by side", [sample, sample])
    refuse(tmp_path / "side by side", "same.json", "twice")


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        open_index(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no \*.tar shards"):
        open_index(tmp_path)
    write_shard(tmp_path / "empty.tar", [])
    with pytest.raises(ValueError, match="no samples"):
        open_index(tmp_path)


def test_a_short_read_is_no_damage_of_the_sample(folder: Path) -> None:
    shard = LocalShard.at(folder / "part-00000.tar")
    with pytest.raises(OSError, match="10 of 20 bytes could be read"):
        shard.read(shard.size - 10, 20)


def test_a_shard_that_was_not_copied_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [*sorted(path.name for path in folder.glob("*.tar")), "part-00009.tar"]
    description = {"shards": [{"name": name, "size": 1} for name in names]}
    (folder / "dataset.json").write_text(json.dumps(description))
    assert len(open_index(folder)) == 20
    assert "lists 1 shards that are not there: part-00009.tar" in caplog.text


def test_reading_goes_on_after_fork_and_after_pickling(folder: Path) -> None:
    index = open_index(folder)
    before = index.read(3, CODEBOOK_SIZE)
    child = os.fork()
    if child == 0:
        same = all(
            np.array_equal(index.read(3, CODEBOOK_SIZE).codes[0], before.codes[0])
            and index.read(i, CODEBOOK_SIZE).key == index.key(i)
            for i in range(len(index))
        )
        os._exit(0 if same else 1)
    for i in range(len(index)):
        assert index.read(i, CODEBOOK_SIZE).key == index.key(i)
    assert os.waitpid(child, 0)[1] == 0
    assert pickle.loads(pickle.dumps(index)).read(3, CODEBOOK_SIZE).turns == before.turns


def test_lengths_are_kept_for_one_prompt_and_one_index(folder: Path) -> None:
    calls = []

    @ToyEncoder
    def counting(sample, drop_prompt):
        calls.append(drop_prompt)
        return toy_encoder(sample, drop_prompt)

    other = ToyEncoder(counting, fingerprint="another toy")
    index = open_index(folder)
    lengths = token_lengths(index, counting, CODEBOOK_SIZE)
    assert lengths.dtype == np.int32 and calls == [False] * 20
    for i in range(20):
        assert lengths[i] == len(toy_encoder(index.read(i, CODEBOOK_SIZE), False))
    assert np.array_equal(token_lengths(index, counting, CODEBOOK_SIZE), lengths)
    assert len(calls) == 20
    token_lengths(index, other, CODEBOOK_SIZE)
    assert len(calls) == 40
    for kept in (folder / ".index").glob("lengths-*"):
        kept.write_bytes(kept.read_bytes()[:70])
    assert np.array_equal(token_lengths(index, counting, CODEBOOK_SIZE), lengths)
