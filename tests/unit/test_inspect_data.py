"""What the tool shows of a run's data, compared with the batches and the shards themselves."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.runs import VOCAB_SIZE, write_dataset
from support.tiny_data import CODEBOOK_SIZE, JANUS_GRID
from support.tools import run_tool

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.analysis.data_plots import StepUse, measure_step, plot_data
from megatron_aia.analysis.sample_images import color_grid
from megatron_aia.analysis.sample_text import describe_images, format_sample
from megatron_aia.cli import parse
from megatron_aia.data.targets import NEXT_TOKEN
from megatron_aia.models import load_model_spec
from megatron_aia.shards.patch_quantizer import PatchQuantizer
from megatron_aia.training.setup import open_data

image_module = pytest.importorskip("PIL.Image")

FAMILIES = ["emu3", "janus_pro"]
NUM_POSITIONS = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {f: write_dataset(tmp_path_factory.mktemp(f) / "data", f) for f in FAMILIES}


def flags_of(folders, family):
    preset = {"emu3": "emu3_demo", "janus_pro": "janus_demo"}[family]
    sizes = {"image_size": 8 * JANUS_GRID, "patch_size": 8} if family == "janus_pro" else {}
    values = {
        "preset": preset,
        "data_path": folders[family],
        "text_vocab_size": VOCAB_SIZE,
        "codebook_size": CODEBOOK_SIZE,
        "seq_length": 256,
        "global_batch_size": NUM_POSITIONS,
        "task_ratio": "1:1:1:1",
        "cfg_drop_prob": 0.4,
        **sizes,
    }
    return [part for k, v in values.items() for part in (f"--{k.replace('_', '-')}", str(v))]


def open_run(folders, family):
    config = parse(flags_of(folders, family))
    return open_data(config, load_model_spec(family))


def inspect(folders, family, *flags):
    return run_tool("inspect_data", *flags_of(folders, family), *flags)


def blocks_of(output):
    """Return the lines of each position."""
    return [block.splitlines() for block in re.split(r"^(?=position )", output, flags=re.M)[1:]]


def count_marks(lines):
    """Return how many tokens carry each mark."""
    totals = {}
    for line in lines:
        match = re.match(r" *(\d+)(?:\.\.(\d+))?  (.*?)  ", line + "  ")
        if not match:
            continue
        whole = int(match[2] or match[1]) - int(match[1]) + 1
        for mark in filter(None, match[3].split(", ")):
            count, name = re.fullmatch(r"(?:(\d+) )?(.+)", mark).groups()
            totals[name] = totals.get(name, 0) + int(count or whole)
    return totals


@pytest.mark.parametrize("family", FAMILIES)
def test_marks_are_those_of_the_batches(folders, family):
    code, output, error = inspect(folders, family, "--count", NUM_POSITIONS)
    assert (code, error) == (0, "")
    blocks = blocks_of(output)
    data = open_run(folders, family)
    seen = 0
    for batch in data.step(0):
        for number, segment in enumerate(batch.segments):
            lines = blocks[segment.position]
            labels = int((batch.targets[NEXT_TOKEN].samples == number).sum())
            length = segment.stop - segment.start
            assert lines[0].endswith(f"{length} tokens, {labels} labels")
            marks = count_marks(lines)
            assert marks.get("label", 0) == labels
            for term in segment.terms:
                name = term.task.name.lower()
                assert marks[f"query {name}"] == len(term.queries)
                assert marks[f"key {name}"] == len(term.keys)
            seen += 1
    assert seen == len(blocks) == NUM_POSITIONS


@pytest.mark.parametrize("family", FAMILIES)
def test_words_names_and_places(folders, family):
    _, output, _ = inspect(folders, family, "--count", NUM_POSITIONS)
    members = {}
    for shard in sorted(folders[family].glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    key = f"{shard.name}/{member.name.removesuffix('.json')}"
                    members[key] = json.load(archive.extractfile(member))
    tasks = set()
    for position, lines in enumerate(blocks_of(output)):
        key = re.search(r"sample (\S+) of \S+, source \S+, epoch 0", lines[1])[1]
        description = members[key]
        tasks.add(description["task"])
        assert lines[0].startswith(f"position {position}: {description['task']}, ")
        assert len([line for line in lines if line.startswith("  image ")]) == len(
            description["codes"]
        )
        text = "\n".join(lines)
        bos = {"emu3": "<bos>", "janus_pro": "<｜begin▁of▁sentence｜>"}[family]  # noqa: RUF001
        assert text.count(bos) == 1
        is_dropped = "query generation" not in text and description["task"] == "generation"
        for turn in description["conversations"]:
            for words in turn["value"].split("<image>"):
                assert is_dropped or words.strip() in text
    assert tasks == {task.name.lower() for task in Task}


def test_positions_are_chosen(folders):
    _, everything, _ = inspect(folders, "emu3", "--count", 9)
    _, some, _ = inspect(folders, "emu3", "--position", 4, "--count", 3)
    assert blocks_of(some) == blocks_of(everything)[4:7]


def test_sources_of_a_mixture_file(folders, tmp_path):
    phases = [{"weights": {"pairs": 1, "words": 2}, "samples": 9}]
    sources = {
        "pairs": {"path": str(folders["emu3"]), "task": "generation"},
        "words": {"path": str(folders["emu3"]), "task": "text"},
    }
    file = tmp_path / "mixture.yaml"
    file.write_text(yaml.safe_dump({"sources": sources, "phases": phases}))
    tokenizer = folders["emu3"] / "tokenizer.model"
    flags = ("--data-path", file, "--tokenizer-model", tokenizer, "--task-ratio", "1:1")
    code, output, error = inspect(folders, "emu3", *flags, "--count", 9)
    assert (code, error) == (0, "")
    for lines in blocks_of(output):
        name = re.search(r", source (\S+), epoch", lines[1])[1]
        assert {"pairs": "generation", "words": "text"}[name] in lines[0]
    code, _, error = inspect(folders, "emu3", *flags, "--count", 10)
    assert code == 2 and "the end of the mixture, which has 9; lower --position" in error


def test_colours_change_nothing_but_colours(folders):
    data = open_run(folders, "emu3")
    for position in range(NUM_POSITIONS):
        placed = data.read_placed(position)
        plain, painted = (
            format_sample(placed, position, "data", data.encoder, in_color)
            for in_color in (False, True)
        )
        assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain
        assert "\x1b" not in plain
        has_roles = placed.tokens.roles.any()
        assert ("\x1b[34" in painted or "\x1b[33" in painted) == has_roles


def test_codes_are_saved_as_colours_or_decoded(folders, tmp_path):
    data = open_run(folders, "emu3")
    position = next(p for p in range(9) if len(data.read_placed(p).raw.images) == 2)
    codes = data.read_placed(position).raw.images
    assert describe_images(data.read_placed(position).raw)[0].endswith("codes, to look at")
    flags = ("--position", position, "--save-image", tmp_path / "images")
    code, output, _ = inspect(folders, "emu3", *flags)
    assert code == 0
    names = [f"position-{position}-image-{number}.png" for number in range(2)]
    assert all(name in output for name in names)
    for name, grid in zip(names, codes, strict=True):
        pixels = np.asarray(image_module.open(tmp_path / "images" / name))
        np.testing.assert_array_equal(pixels, color_grid(grid))
        cells = pixels[::8, ::8].reshape(-1, 3)
        assert len({tuple(cell) for cell in cells}) == len(np.unique(grid))
    codebook = np.random.default_rng(0).integers(0, 256, (CODEBOOK_SIZE, 4, 4, 3)).astype(np.uint8)
    quantizer = PatchQuantizer(codebook, 64)
    file = folders["emu3"] / "codebook.npz"
    try:
        quantizer.save(file)
        inspect(folders, "emu3", *flags)
    finally:
        file.unlink()
    decoded = np.asarray(image_module.open(tmp_path / "images" / names[1]))
    np.testing.assert_array_equal(decoded[:4, :4], codebook[codes[1][0, 0]])


def test_pictures_are_saved_as_they_are(folders, tmp_path):
    data = open_run(folders, "janus_pro")
    position = next(p for p in range(9) if data.read_placed(p).tokens.task is Task.UNDERSTANDING)
    inspect(folders, "janus_pro", "--position", position, "--save-image", tmp_path)
    shard, key = data.read_placed(position).raw.key.split("/")
    with tarfile.open(folders["janus_pro"] / shard) as archive:
        picture = image_module.open(io.BytesIO(archive.extractfile(f"{key}.0.png").read()))
    saved = image_module.open(tmp_path / f"position-{position}-image-0.png")
    np.testing.assert_array_equal(np.asarray(saved), np.asarray(picture))
    (line,) = describe_images(data.read_placed(position).raw)
    assert line == f"picture of {picture.width} x {picture.height} pixels, to look at"


def test_replacements_are_shown_as_a_run_reads_them(folders, tmp_path):
    """Damage behind the header of a picture shows when it is decoded."""
    folder = tmp_path / "data"
    shutil.copytree(folders["janus_pro"], folder, ignore=shutil.ignore_patterns(".index"))
    shard = folder / "shard-000001.tar"
    with tarfile.open(shard) as archive:
        member = next(info for info in archive if info.name.endswith(".png"))
    data = bytearray(shard.read_bytes())
    data[member.offset_data + member.size - 20] ^= 0xFF
    shard.write_bytes(data)
    damaged = f"{shard.name}/{member.name.split('.')[0]}"
    _, before, _ = inspect(folders, "janus_pro", "--count", NUM_POSITIONS * 2)
    changed = {"janus_pro": folder}
    code, after, error = inspect(changed, "janus_pro", "--count", NUM_POSITIONS * 2)
    assert code == 0 and error.startswith("corrupt: ") and error.count("\n") == 1
    assert damaged in before.split() and damaged not in after.split()
    for old, new in zip(blocks_of(before), blocks_of(after), strict=True):
        assert (old[2:] == new[2:]) or damaged in old[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_plot(folders, family, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "data.png"
    flags = ("--count", 0, "--plot", file, "--plot-steps", 2)
    assert inspect(folders, family, *flags) == (0, f"{file}\n", "")
    assert min(image_module.open(file).size) > 400
    use = measure_step(open_run(folders, family).step(0))
    assert len(use.lengths) == len(use.tasks) == NUM_POSITIONS
    assert use.num_positions % 256 == 0


def test_figure_holds_every_sample_and_step():
    pytest.importorskip("matplotlib")
    generation, understanding = AIA_TASKS
    steps = [
        StepUse((10, 30), (generation, understanding), 100),
        StepUse((20,), (understanding,), 50),
    ]
    figure = plot_data(steps, seq_length=50)
    lengths, padding = figure.axes
    assert sum(bar.get_height() for bar in padding.patches) == 2
    assert sum(bar.get_height() for bar in lengths.patches) == 3
    names = [text.get_text() for text in lengths.get_legend().get_texts()]
    assert {"generation (1)", "understanding (2)"} < set(names)
    assert figure.get_suptitle() == "3 samples in 2 steps, 60.0% padding"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--position", "-1"], "--position -1 must be at least 0"),
        (["--position", "x"], "--position: invalid int value"),
        (["--plot-steps", "0"], "--plot-steps 0 must be at least 1"),
        (["--positon", "3"], "unknown option --positon"),
        (["--data-path", "missing"], "missing"),
        (["--seq-length", "10"], "are longer than a sequence of 10 tokens"),
        (["--task-ratio", "0:0"], "--task-ratio"),
        (["--tokenizer-model", "missing"], "no text tokeniser at missing"),
    ],
)
def test_user_errors_are_one_line(folders, flags, message):
    code, output, error = inspect(folders, "emu3", *flags)
    assert (code, output) == (2, "")
    (line,) = error.splitlines()
    assert line.startswith("inspect_data: ") and message in line


def test_the_tool_shows_its_flags():
    text = (Path(__file__).parents[2] / "tools" / "inspect_data.py").read_text()
    for flag in re.findall(r'add_argument\("(--[a-z-]+)"', text):
        assert text.split('"""')[1].count(flag)
