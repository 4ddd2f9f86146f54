"""tools/generate.py as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny_runs import EMU3_AREA, run_tool_on, tiny_run
from support.tools import TOOLS

from megatron_aia.shards.folder import CODEBOOK_FILE
from megatron_aia.shards.patch_quantizer import PatchQuantizer

PROMPTS = ["abc", "a fed cab", "dead beef", "c", "bad cafe"]
PLAIN = ("--prompt-suffix", "", "--negative-prompt", "")
FLAGS = {
    "emu3": (*PLAIN, "--ratio", "4:3", "--image-area", EMU3_AREA, "--top-k", 20),
    "janus_pro": ("--temperature", 6.0),
}
LAYOUTS = {
    "DP 2": (2, ()),
    "TP 2": (2, ("--tensor-model-parallel-size", 2)),
    "PP 2 x VPP 2": (
        2,
        ("--pipeline-model-parallel-size", 2, "--num-layers-per-virtual-pipeline-stage", 1),
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tiny_run(tmp_path_factory.mktemp(family), family) for family in FLAGS}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("\n".join(PROMPTS) + "\n\n")
    return file


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def generate(world_size: int, run: Path, output: Path, *flags: object) -> dict[str, bytes]:
    code, out, error = run_tool_on(
        world_size, "generate", "--load", run, "--output", output, *flags
    )
    assert code == 0, error
    assert "pictures drawn" in out
    return contents(output)


@pytest.fixture(scope="module")
def drawn(
    runs: dict[str, Path], prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, bytes]]:
    root = tmp_path_factory.mktemp("drawn")
    return {
        family: generate(
            1, runs[family], root / family, "--prompts", prompts, "--num-images", 2, *FLAGS[family]
        )
        for family in FLAGS
    }


@pytest.mark.parametrize("family", FLAGS)
def test_what_the_folder_holds(family: str, drawn: dict[str, dict[str, bytes]]) -> None:
    files = drawn[family]
    lines = [json.loads(line) for line in files["pictures.jsonl"].decode().splitlines()]
    assert [line["prompt"] for line in lines] == [p for p in PROMPTS for _ in range(2)]
    assert [line["image_number"] for line in lines] == [0, 1] * len(PROMPTS)
    pictures = {files[line["picture"]] for line in lines}
    assert len(pictures) > 7
    assert lines[0]["seed"] == 42
    assert lines[0]["guidance_scale"] == (3.0 if family == "emu3" else 5.0)
    expected = {"settings.yaml", "pictures.jsonl", "contact_sheet.png"}
    expected |= {line[kind] for line in lines for kind in ("picture", "codes")}
    assert files.keys() == expected


@pytest.mark.parametrize("family", FLAGS)
def test_a_picture_is_its_codes(
    family: str, runs: dict[str, Path], drawn: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    codebook = PatchQuantizer.load(runs[family].parent / "data" / CODEBOOK_FILE)
    for kind, name in (("picture", "p.png"), ("codes", "c.npy")):
        line = json.loads(drawn[family]["pictures.jsonl"].decode().splitlines()[3])
        (tmp_path / name).write_bytes(drawn[family][line[kind]])
    codes = np.load(tmp_path / "c.npy")
    assert codes.shape == ((3, 4) if family == "emu3" else (2, 2))
    with Image.open(tmp_path / "p.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(codebook.decode(codes)))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("family", FLAGS)
def test_the_same_bytes_in_any_layout_and_batch(
    family: str,
    name: str,
    runs: dict[str, Path],
    prompts: Path,
    drawn: dict[str, dict[str, bytes]],
    tmp_path: Path,
) -> None:
    world_size, flags = LAYOUTS[name]
    flags = (*flags, *FLAGS[family], "--num-images", 2, "--batch-size", 3)
    found = generate(world_size, runs[family], tmp_path / "out", "--prompts", prompts, *flags)
    assert found == drawn[family]


def test_a_picture_does_not_depend_on_its_neighbours(
    runs: dict[str, Path], drawn: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    flags = ("--prompt", PROMPTS[2], "--num-images", 3, *FLAGS["janus_pro"])
    found = generate(1, runs["janus_pro"], tmp_path / "out", *flags)
    for number in range(2):
        before = drawn["janus_pro"][f"pictures/00002-{number:02d}.png"]
        assert found[f"pictures/00000-{number:02d}.png"] == before
    other = generate(1, runs["janus_pro"], tmp_path / "seed", *flags, "--seed", 43)
    assert other["pictures/00000-00.png"] != found["pictures/00000-00.png"]


def test_a_killed_command_goes_on(
    runs: dict[str, Path], prompts: Path, drawn: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    flags = ["--load", runs["janus_pro"], "--prompts", prompts, "--output", tmp_path / "out"]
    flags += ["--num-images", 2, "--batch-size", 1, *FLAGS["janus_pro"]]
    command = [sys.executable, str(TOOLS / "generate.py"), *map(str, flags)]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out").glob("pictures/*.png"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("pictures/*.png")}
    assert 2 <= len(before) < 10 and not (tmp_path / "out" / "pictures.jsonl").exists()
    code, out, error = run_tool_on(1, "generate", *flags)
    assert code == 0, error
    assert f"{10 - len(before)} of 10 pictures drawn" in out
    found = contents(tmp_path / "out")
    assert {name: found[name] for name in drawn["janus_pro"]} == drawn["janus_pro"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # A half-written file of the killed process has a name of its own.
    assert all(Path(name).name.startswith(".") for name in found.keys() - drawn["janus_pro"].keys())


BAD = {
    "no image tokeniser": (("--image-tokenizer", "/nowhere"), "--image-tokenizer /nowhere cannot"),
    "another codebook": (("--image-tokenizer", "OTHER"), "codebook of 7, and the model one of 24"),
    "an unknown ratio": (("--ratio", "5:4"), "--ratio 5:4"),
    "two ways to ask": (("--prompts", "x.txt"), "either --prompt TEXT or --prompts FILE"),
    "nothing in the batch": (("--batch-size", "0"), "--batch-size 0 is out of range"),
    "no such layout": (("--tensor-model-parallel-size", "3"), "--tensor-model-parallel-size 3"),
    "too many processes": (("--tensor-model-parallel-size", "2"), "divide the number of processes"),
    "an unknown flag": (("--guidance", "3"), "unknown option --guidance"),
    "no checkpoint": (("--load", "/nowhere"), "--load /nowhere is not a folder"),
    "no tokeniser": (("--tokenizer", "/nowhere"), "no text tokeniser at /nowhere"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    flags, expected = BAD[name]
    if "OTHER" in flags:
        squares = np.zeros((7, 8, 8, 3), np.uint8)
        PatchQuantizer(squares, 256).save(tmp_path / "other.npz")
        flags = ("--image-tokenizer", str(tmp_path / "other.npz"))
    usual = ("--load", runs["janus_pro"], "--prompt", "a cab", "--output", tmp_path / "out")
    code, out, error = run_tool_on(1, "generate", *usual, *flags)
    assert code == 2 and not out
    assert expected in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


LINES = {
    '{"prompt": "a", "size": 3}': "line 1: 'size' is not known",
    '{"prompt": ""}': "line 1: 'prompt' must be a text; it is ''",
    '{"negative_prompt": "a"}': "line 1: 'prompt' must be a text; it is None",
    '{"prompt": "a", "ratio": 1}': "line 1: 'ratio' must be a text; it is 1",
    '{"prompt": "a", "image_area": "1"}': "'image_area' must be a number of pixels; it is '1'",
    "[1]": "line 1: not an object but list",
    "{": "line 1: no JSON",
    "": "has no prompt",
}


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_line_of_prompts_is_named(line: str, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(line)
    flags = ("--prompts", tmp_path / "p.jsonl", "--output", tmp_path / "out")
    code, _, error = run_tool_on(1, "generate", "--load", runs["janus_pro"], *flags)
    assert code == 2 and LINES[line] in error and error.count("\n") == 1


def test_a_prompt_longer_than_the_context(runs: dict[str, Path], tmp_path: Path) -> None:
    long = "abcdef " * 100
    flags = ("--prompt", long, "--output", tmp_path / "out", "--image-area", EMU3_AREA)
    code, _, error = run_tool_on(1, "generate", "--load", runs["emu3"], *flags)
    assert code == 2
    assert "more than the model's 256 (--max-position-embeddings)" in error


def test_other_settings_do_not_go_into_the_same_folder(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    flags = ("--load", runs["janus_pro"], "--prompt", "abc", "--output", tmp_path / "out")
    assert run_tool_on(1, "generate", *flags)[0] == 0
    before = contents(tmp_path / "out")
    for more, expected in (
        (("--guidance-scale", 2), "results of guidance_scale 5.0, not 2.0"),
        (("--num-images", 2), "results of other prompts"),
    ):
        code, _, error = run_tool_on(1, "generate", *flags, *more)
        assert code == 2 and expected in error
    assert contents(tmp_path / "out") == before
    assert "0 of 4 pictures drawn, all were there" in run_tool_on(1, "generate", *flags)[1]


def test_a_disk_that_is_full_ends_the_command_on_every_rank(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megatron_aia.generation.picture_folder.png_bytes", full)
    flags = ("--load", runs["janus_pro"], "--prompt", "abc", "--output", tmp_path / "out")
    more = ("--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2)
    code, _, error = run_tool_on(4, "generate", *flags, *more)
    assert code == 2 and "a picture cannot be written" in error and "No space left" in error
