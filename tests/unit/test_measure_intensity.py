"""tools/measure_intensity.py on a tiny LLaVA: files, counts, wrong input."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.picture_data import write_pictures, write_records
from support.tiny_data import write_shards
from support.tiny_processor import (
    chameleon_model,
    chameleon_processor,
    llava_model,
    llava_processor,
)
from support.tools import run_tool

from megatron_aia.building.build import build_shards
from megatron_aia.building.options import BuildOptions
from megatron_aia.measurement.curves import read_curves, read_samples
from megatron_aia.measurement.processor_inputs import understanding_inputs
from megatron_aia.shards.index import open_index


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llava"
    processor = llava_processor()
    llava_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Janus-Pro's understanding samples hold pictures."""
    return write_shards(tmp_path_factory.mktemp("shards"), family="janus_pro")


def run(teacher: Path, shards: Path, output: Path, *flags: object) -> tuple[int, str, str]:
    arguments = ("--hf-path", teacher, "--data-path", shards, "--output", output, *flags)
    return run_tool("measure_intensity", *arguments)


def by_maps(shards: Path, key: str) -> list[float]:
    """Eq. 1 of a sample from eager maps."""
    processor = llava_processor()
    model = llava_model(processor)
    index = open_index(shards)
    number = next(n for n in range(len(index)) if index.key(n) == key)
    ids = [processor.tokenizer.convert_tokens_to_ids("<image>")]
    found = understanding_inputs(processor, index.read(number, 1 << 16), ids, 512)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**found.inputs, output_attentions=True, use_cache=False).attentions
    queries, keys = found.term.queries, found.term.keys
    return [m[0][:, queries][:, :, keys].double().sum(-1).mean().item() for m in maps]


def test_a_model_is_measured(teacher: Path, shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    code, out, err = run(teacher, shards, output, "--dtype", "fp32")
    assert code == 0, err
    assert "understanding: 8 of 8 samples measured" in out
    samples = read_samples(output / "intensity.jsonl")
    assert len(samples) == 8
    assert {(sample.model, sample.task) for sample in samples} == {("tiny-llava", "understanding")}
    for sample in samples[:3]:
        assert sample.intensity == pytest.approx(by_maps(shards, sample.sample), abs=1e-6)
        assert sample.keys == 16 * sample.images
    summary = json.loads((output / "summary.json").read_text())
    found = summary["tasks"]["understanding"]
    assert found["mean"] == pytest.approx(read_curves(output)[0].mean.tolist())
    assert summary["config_hash"] == samples[0].config_hash
    again = run(teacher, shards, output)
    assert again[0] == 2
    assert "holds a measurement" in again[2]


def test_flags(teacher: Path, shards: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        teacher, shards, tmp_path / "a", "--samples", 3, "--name", "mine", "--dtype", "bf16"
    )
    assert code == 0
    assert "3 of 3 samples" in out
    low = read_samples(tmp_path / "a" / "intensity.jsonl")
    assert {sample.model for sample in low} == {"mine"}
    assert run(teacher, shards, tmp_path / "b", "--samples", 3)[0] == 0
    high = read_samples(tmp_path / "b" / "intensity.jsonl")
    assert [sample.sample for sample in low] == [sample.sample for sample in high]
    assert low[0].intensity != high[0].intensity
    assert low[0].intensity == pytest.approx(high[0].intensity, abs=0.05)
    _, _, err = run(teacher, shards, tmp_path / "c", "--image-token-ids", 999, "--samples", 1)
    assert "0 of 1 samples: 1 no image token among its tokens" in err


def test_left_out_samples_are_counted(teacher: Path, shards: Path, tmp_path: Path) -> None:
    tokens = []
    run(teacher, shards, tmp_path / "all", "--dtype", "fp32")
    for sample in read_samples(tmp_path / "all" / "intensity.jsonl"):
        tokens.append(sample.tokens)
    most = sorted(tokens)[-2]
    code, out, _ = run(teacher, shards, tmp_path / "some", "--max-length", most)
    too_long = sum(count > most for count in tokens)
    assert code == 0
    assert f"{8 - too_long} of 8 samples measured; {too_long} longer than {most} tokens" in out
    found = json.loads((tmp_path / "some" / "summary.json").read_text())["tasks"]["understanding"]
    measured = {sample.sample for sample in read_samples(tmp_path / "some" / "intensity.jsonl")}
    assert len(found["inactive_samples"]) == too_long
    assert not measured & set(found["inactive_samples"])
    code, _, err = run(teacher, shards, tmp_path / "none", "--max-length", 5)
    assert code == 2
    assert "understanding: 0 of 8 samples: 8 longer than 5 tokens" in err
    assert not (tmp_path / "none").exists()


def test_wrong_input_is_one_line(teacher: Path, shards: Path, tmp_path: Path) -> None:
    text_only = write_shards(tmp_path / "codes", samples_per_task=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "nonsense"}')
    for model, data, said in (
        (tmp_path / "empty", shards, "there is no config.json"),
        (tmp_path / "broken", shards, "cannot be measured"),
        (teacher, tmp_path / "empty", "empty"),
        (teacher, text_only, "stored as codes, not as a picture"),
    ):
        code, _, err = run(model, data, tmp_path / "out")
        assert code == 2
        (line,) = (line for line in err.splitlines() if line.startswith("error: "))
        assert said in line


def test_flags_of_another_kind_of_model_are_refused(
    teacher: Path, shards: Path, tmp_path: Path
) -> None:
    data = ("--data-path", shards, "--output", tmp_path / "out")
    hf = ("--hf-path", teacher)
    for flags, said in (
        ((), "pass either --hf-path FOLDER or --load CHECKPOINT"),
        ((*hf, "--load", teacher), "pass either --hf-path FOLDER or --load CHECKPOINT"),
        (("--load", tmp_path / "none"), "--load"),
        (("--load", teacher, "--image-token-ids", 3), "--image-token-ids has no effect with"),
        (("--load", teacher, "--dtype", "fp16"), "no checkpoint"),
        ((*hf, "--tensor-model-parallel-size", 2), "--tensor-model-parallel-size has no effect"),
        ((*hf, "--context-parallel-size", 2), "--context-parallel-size has no effect"),
        ((*hf, "--sequence-parallel"), "--sequence-parallel has no effect"),
        ((*hf, "--tokenizer", teacher), "leave --tokenizer out"),
        ((*hf, "--image-tokenizer", teacher), "leave --image-tokenizer out"),
        ((*hf, "--task", "generation"), "--task generation: this model is measured on"),
        ((*hf, "--task", "text"), "--task"),
    ):
        code, _, err = run_tool("measure_intensity", *flags, *data)
        assert code == 2
        (line,) = (line for line in err.splitlines() if line.startswith("error: "))
        assert said in line


def test_a_model_that_draws_is_measured_on_both_tasks(tmp_path: Path) -> None:
    processor = chameleon_processor()
    model = chameleon_model(processor)
    model.save_pretrained(tmp_path / "chameleon")
    processor.save_pretrained(tmp_path / "chameleon")
    write_records(tmp_path / "records.json", write_pictures(tmp_path / "pictures"))
    data = tmp_path / "data"
    build_shards(
        BuildOptions(
            records=tmp_path / "records.json", output=data, image_root=tmp_path / "pictures"
        )
    )
    code, out, err = run(tmp_path / "chameleon", data, tmp_path / "out")
    assert code == 0, err
    root = ("--image-root", tmp_path / "pictures")
    code, out, err = run(tmp_path / "chameleon", tmp_path / "records.json", tmp_path / "raw", *root)
    assert code == 0, err
    of_shards, of_records = (read_samples(tmp_path / n / "intensity.jsonl") for n in ("out", "raw"))
    assert of_records[0].sample == "records.json/draw-wide.png"
    assert [s.intensity for s in of_records] == [s.intensity for s in of_shards]
    for flags, said in (
        ((tmp_path / "records.json", tmp_path / "x"), "wide.png"),
        ((data, tmp_path / "x", *root), "--image-root has no effect"),
    ):
        code, _, err = run(tmp_path / "chameleon", *flags)
        assert code == 2
        assert said in err
    assert "generation: 7 of 7 samples measured" in out
    assert "understanding: 7 of 7 samples measured" in out
    index = open_index(data)
    drawn = [s for s in read_samples(tmp_path / "out" / "intensity.jsonl") if s.task[0] == "g"]
    number = next(n for n in range(len(index)) if index.key(n) == drawn[0].sample)
    picture = index.read(number, 16).images[0].decode()
    inputs = processor(
        text=index.read(number, 16).turns[0].text + "<image>",
        images=[Image.fromarray(picture)],
        return_tensors="pt",
    )
    image = inputs["input_ids"][0] == processor.tokenizer.convert_tokens_to_ids("<image>")
    first = int(image.nonzero()[0])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True, use_cache=False).attentions
    expected = [m[0][:, image][:, :, :first].double().sum(-1).mean().item() for m in maps]
    assert drawn[0].intensity == pytest.approx(expected, abs=1e-6)
    assert (drawn[0].queries, drawn[0].keys) == (64, first)
