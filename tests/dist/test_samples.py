"""Pictures and answers while training: seen everywhere, and nothing that training notices."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn
from support.tiny_runs import EMU3_AREA, run_tool_on, write_codebook
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_aia.analysis.records import LogRecord
from megatron_aia.config import Config, validate

TP = {"tensor_model_parallel_size": 2}
PP = {"pipeline_model_parallel_size": 2}
OVERLAP = {
    "use_distributed_optimizer": True,
    "overlap_grad_reduce": True,
    "overlap_param_gather": True,
}
LAYOUTS = {
    "TP 2 + SP": (2, Layout({**TP, "sequence_parallel": True})),
    "TP 2 + SP, full recompute": (
        2,
        Layout({**TP, "sequence_parallel": True, "recompute_granularity": "full"}),
    ),
    "PP 2 x VPP 2": (2, Layout({**PP, "num_layers_per_virtual_pipeline_stage": 1})),
    "CP 2": (2, Layout({"context_parallel_size": 2})),
    "DP 2, overlapped": (2, Layout(OVERLAP)),
}
FAMILIES = ["emu3", "janus_pro"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    found = {name: write_dataset(root / name, name) for name in FAMILIES}
    for family, folder in found.items():
        write_codebook(folder, family)
    return found


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("asked")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "a.png")
    size = {"ratio": "4:3", "image_area": EMU3_AREA, "negative_prompt": "", "prompt_suffix": ""}
    for family in FAMILIES:
        own = size if family == "emu3" else {}
        lines: list[dict[str, Any]] = [
            {"prompt": "a cab", **own},
            {"question": "abc", "image": "a.png"},
            {"prompt": "bad cafe", **own},
            {"question": "fed"},
        ]
        (root / f"{family}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return {family: root / f"{family}.jsonl" for family in FAMILIES}


def configure(data: Path, layout: Layout, save: Path, asked: Path | None) -> Config:
    """Return a run of three steps with dropout that samples after each."""
    config = run_config(data, layout, train_iters=3, save=str(save))
    logging = replace(
        config.logging,
        sample_prompts=None if asked is None else str(asked),
        sample_interval=1,
        tensorboard_dir=str(save / "tensorboard"),
    )
    dropout = 0.0 if layout.parallel.get("context_parallel_size") else 0.1
    model = replace(config.model, hidden_dropout=dropout)
    return replace(config, model=model, logging=logging)


def read_samples(save: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (save / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def sampled(
    data: dict[str, Path], asked: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folders = {family: tmp_path_factory.mktemp("run") for family in FAMILIES}
    for family, folder in folders.items():
        spawn(train, 1, configure(data[family], Layout(family=family), folder, asked[family]))
    return folders


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_training_does_not_notice_and_all_layouts_show_the_same(
    name: str,
    family: str,
    data: dict[str, Path],
    asked: dict[str, Path],
    sampled: dict[str, Path],
    tmp_path: Path,
) -> None:
    world_size, layout = LAYOUTS[name]
    layout = replace(layout, family=family)
    runs: list[list[LogRecord]] = []
    for samples in (None, asked[family]):
        config = configure(data[family], layout, tmp_path / str(bool(samples)), samples)
        runs.append(spawn(train, world_size, config))
    for without, with_it in zip(*runs, strict=True):
        assert (without.loss, without.grad_norm) == (with_it.loss, with_it.grad_norm)
        assert without.losses == with_it.losses
    assert runs[0][2].loss != runs[0][0].loss
    assert runs[1][2].phases["samples"] > 0 == runs[0][2].phases["samples"]
    # The first step has a learning rate of 0: weights are those of every layout.
    ours, expected = read_samples(tmp_path / "True"), read_samples(sampled[family])
    assert ours[:4] == expected[:4]
    for line in (0, 2):
        picture = ours[line]["picture"]
        assert (tmp_path / "True" / picture).read_bytes() == (
            sampled[family] / picture
        ).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_in_the_folder_and_in_tensorboard(
    family: str, sampled: dict[str, Path], asked: dict[str, Path]
) -> None:
    lines = read_samples(sampled[family])
    assert [(line["iteration"], line["number"]) for line in lines] == [
        (step, number) for step in (1, 2, 3) for number in range(4)
    ]
    assert lines[0]["prompt"] == "a cab" and lines[1]["question"] == "abc"
    assert lines[1]["image"].endswith("a.png") and lines[3]["image"] is None
    events = EventAccumulator(str(sampled[family] / "tensorboard"), {"images": 0, "tensors": 0})
    events.Reload()
    assert [event.step for event in events.Images("samples/00")] == [1, 2, 3]
    image = events.Images("samples/02")[0]
    assert (image.height, image.width) == ((24, 32) if family == "emu3" else (16, 16))
    (text, *_) = events.Tensors("samples/01/text_summary")
    assert lines[1]["answer"] in text.tensor_proto.string_val[0].decode()


def test_a_sample_is_what_the_commands_write(
    sampled: dict[str, Path], asked: dict[str, Path], tmp_path: Path
) -> None:
    """The last sample and the checkpoint of the same step."""
    (tmp_path / "q.jsonl").write_text(json.dumps({"key": "0", "text": "fed"}))
    flags = ("--load", sampled["emu3"], "--ask", tmp_path / "q.jsonl", "--answers", tmp_path / "a")
    code, _, error = run_tool_on(1, "chat", *flags, "--max-new-tokens", 128)
    assert code == 0, error
    answer = json.loads((tmp_path / "a").read_text())["answer"]
    assert answer == read_samples(sampled["emu3"])[11]["answer"]


BAD = {
    '{"text": "a"}': "either 'prompt' or 'question'",
    '{"prompt": "a", "question": "b"}': "either 'prompt' or 'question'",
    '{"prompt": "a", "image": "b"}': "'image' is not known",
    '{"question": "a", "image": "b.png"}': "b.png is not there",
    '{"question": ""}': "'question' must be a text",
    "": "asks for nothing",
    '{"prompt": "a", "ratio": "5:4"}': "--ratio 5:4",
    json.dumps({"question": "abc " * 200}): "leaves no room for an answer",
}


@pytest.mark.parametrize("line", BAD)
def test_a_wrong_line_ends_the_run_at_its_start(
    line: str, data: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "s.jsonl").write_text(line)
    layout = Layout(TP, family="janus_pro")
    config = configure(data["janus_pro"], layout, tmp_path / "run", tmp_path / "s.jsonl")
    with pytest.raises(AssertionError) as caught:
        spawn(train, 2, config)
    assert BAD[line] in str(caught.value) and "ValueError" in str(caught.value)


def test_flags_that_do_not_fit(data: dict[str, Path], tmp_path: Path) -> None:
    config = configure(data["emu3"], Layout(), tmp_path, tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match=r"--sample-prompts .*nothing.jsonl is not a file"):
        validate(config, 1)
    (tmp_path / "s.jsonl").write_text('{"prompt": "a"}')
    logging = replace(
        config.logging, sample_prompts=str(tmp_path / "s.jsonl"), tensorboard_dir=None
    )
    nowhere = replace(config, logging=logging, checkpoint=replace(config.checkpoint, save=None))
    with pytest.raises(ValueError, match="--sample-prompts has no folder"):
        validate(nowhere, 1)
    alone = replace(config, logging=replace(logging, sample_prompts=None))
    assert "--sample-interval has no effect without --sample-prompts" in validate(alone, 1)


def test_a_run_without_an_image_tokeniser(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", "janus_pro")
    (tmp_path / "s.jsonl").write_text('{"prompt": "a"}')
    config = configure(folder, Layout(family="janus_pro"), tmp_path / "r", tmp_path / "s.jsonl")
    with pytest.raises(AssertionError, match=r"pictures of codes is missing; add --image-tok"):
        spawn(train, 1, config)
