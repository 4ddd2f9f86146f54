"""Emu3 from Hugging Face to this project and back, and every way it can go wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from support.hugging_face import Fixture, read_tensors, write_checkpoint
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn
from support.tools import TOOLS, Result, export_hf, import_hf

from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.config.files import read_yaml
from megatron_aia.models import llama_config
from megatron_aia.models.emu3 import hf_config

pytestmark = pytest.mark.versions

HALF = torch.bfloat16
FIXTURES = {
    "transformers": Fixture("transformers", groups=2, head_size=6),
    "in memory": Fixture("in memory", groups=1, dtype=HALF),
    "text model": Fixture("text model", groups=4, head_size=14),
    "original": Fixture("original", groups=2),
    "original .bin": Fixture("original .bin", groups=4, dtype=HALF),
}


def convert_all(folder: Path) -> dict[str, list[Result]]:
    results = {}
    for name in FIXTURES:
        layout = "original" if name.startswith("original") else "transformers"
        ours = folder / name / "ours"
        results[name] = [
            import_hf(folder / name / "hf", ours, "--verify"),
            export_hf(ours, folder / name / "back", layout),
        ]
    return results


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Result]]]:
    """A folder with hf, ours and back for each fixture, and what the tools said."""
    folder = tmp_path_factory.mktemp("convert")
    for name, fixture in FIXTURES.items():
        write_checkpoint(fixture, folder / name / "hf")
    return folder, spawn(convert_all, 1, folder)


def on_disk_name(name: str) -> str:
    """Return the name that every version of Transformers reads."""
    for before, after in (
        ("model.text_model.", "text_model.model."),
        ("model.vqmodel.", "vqmodel."),
    ):
        name = name.replace(before, after)
    return "text_model.lm_head.weight" if name == "lm_head.weight" else name


@pytest.mark.parametrize("name", FIXTURES)
def test_there_and_back_is_bit_identical(name: str, converted: Any) -> None:
    folder, results = converted
    assert [code for code, _, _ in results[name]] == [0, 0], results[name]
    before, after = (read_tensors(folder / name / part) for part in ("hf", "back"))
    if name == "in memory":
        before = {on_disk_name(key): tensor for key, tensor in before.items()}
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key


@pytest.mark.parametrize("name", FIXTURES)
def test_logits_equal_transformers(name: str, converted: Any) -> None:
    """--verify fails above 1e-4; in fp32 there is much room."""
    report = converted[1][name][0][1]
    relative = float(report.partition("(")[2].split()[0])
    assert relative < 1e-5, report
    assert "top-1 agreement 100.00%" in report


@pytest.mark.parametrize("name", FIXTURES)
def test_configuration_and_files_come_back(name: str, converted: Any) -> None:
    folder, _ = converted
    before, after = (
        json.loads((folder / name / part / "config.json").read_text()) for part in ("hf", "back")
    )
    assert hf_config.model_config(before) == hf_config.model_config(after)
    dtype = str(FIXTURES[name].dtype).removeprefix("torch.")
    for part in (after, after.get("text_config", after)):
        assert {part.get("torch_dtype"), part.get("dtype", dtype)} == {dtype}
    assert before["model_type"] == after["model_type"]
    assert after.get("vocabulary_map") == before.get("vocabulary_map")
    assert after.get("text_config", after)["attention_dropout"] == 0.2
    assert (folder / name / "back" / "tokenizer_config.json").is_file()
    assert not (folder / name / "back" / "README.md").exists()


@pytest.mark.parametrize("name", ["transformers", "in memory", "text model"])
def test_export_loads_in_transformers(name: str, converted: Any) -> None:
    import transformers

    folder, _ = converted
    whole = name != "text model"
    cls = transformers.Emu3ForConditionalGeneration if whole else transformers.Emu3ForCausalLM
    ids = torch.randint(500, (2, 60), generator=torch.Generator().manual_seed(1))
    logits = []
    for part in ("hf", "back"):
        model, info = cls.from_pretrained(
            folder / name / part, output_loading_info=True, torch_dtype="auto"
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert model.dtype == FIXTURES[name].dtype
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    assert torch.equal(*logits)


FOUR = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}


def train_standing_still(
    data: Path, source: Path, run: Path, parallel: dict[str, Any], bf16: bool
) -> Any:
    """Start from converted weights and take a step at a learning rate of 0."""
    options = {"load": str(source), "save": str(run)}
    config = run_config(data, Layout({**FOUR, **parallel}), 1, **options)
    file = read_yaml(str(find_checkpoint(source) / "config.yaml"))
    config = replace(
        config,
        model=replace(config.model, **file.values),
        training=replace(config.training, lr=0.0, min_lr=0.0, bf16=bf16),
    )
    return train(config)


def export_all(run: Path, assets: Path, folder: Path) -> list[Result]:
    return [
        export_hf(run, folder / "whole", "transformers", "--assets", assets),
        export_hf(run, folder / "text", "transformers"),
        export_hf(run, folder / "text", "transformers"),
        export_hf(run, folder / "text", "transformers", "--overwrite"),
        export_hf(run, folder / "original", "original"),
        export_hf(run, folder / "no assets", "transformers", "--assets", run),
    ]


def test_training_starts_from_it_and_its_checkpoint_exports(converted: Any, tmp_path: Path) -> None:
    folder, _ = converted
    data = write_dataset(tmp_path / "data")
    ours = folder / "transformers" / "ours"
    zero = {"use_distributed_optimizer": True}
    records = spawn(train_standing_still, 4, data, ours, tmp_path / "run", zero, False)
    assert len(records) == 1
    results = spawn(export_all, 1, tmp_path / "run", ours, tmp_path)
    assert [code for code, _, _ in results] == [0, 0, 2, 0, 2, 2], results
    assert "pass --overwrite" in results[2][2]
    assert "has no head size of its own" in results[4][2]
    assert "was not converted from Hugging Face" in results[5][2]
    assert not (tmp_path / "original").exists()
    before = read_tensors(folder / "transformers" / "hf")
    whole, text = read_tensors(tmp_path / "whole"), read_tensors(tmp_path / "text")
    assert before.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in before.items())
    assert {key: None for key in text} == {
        key.removeprefix("text_model."): None for key in before if not key.startswith("vqmodel.")
    }
    assert all(torch.equal(tensor, whole[f"text_model.{key}"]) for key, tensor in text.items())


def test_bf16_through_an_interleaved_pipeline(converted: Any, tmp_path: Path) -> None:
    source = converted[0] / "original .bin"
    chunks = {"num_layers_per_virtual_pipeline_stage": 1}
    data, run = write_dataset(tmp_path / "data"), tmp_path / "run"
    spawn(train_standing_still, 4, data, source / "ours", run, chunks, True)
    code, _, err = spawn(export_hf, 1, run, tmp_path / "back", "original")
    assert code == 0, err
    before, after = read_tensors(source / "hf"), read_tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def change_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def change_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        from safetensors.torch import save_file

        tensors = read_tensors(folder)
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return rewrite


def write_index(folder: Path, name: str, file: str) -> None:
    index = {"weight_map": {name: file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


class Dangerous:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def replace_by_pickle(content: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return write


def set_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][3] = torch.nan


def set_half(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name].bfloat16()


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "other model": (change_config(model_type="llama"), "model_type 'llama' is not known"),
    "too many layers": (change_config(num_hidden_layers=5), "lacks model.layers.4."),
    "too few layers": (change_config(num_hidden_layers=3), "which no part of the model takes"),
    "other width": (change_config(intermediate_size=54), "its configuration says [54, 40]"),
    "other names": (
        change_tensors(lambda t: t.pop("model.embed_tokens.weight")),
        "no names of an Emu3 checkpoint",
    ),
    "NaN": (change_tensors(set_nan), "model.norm.weight holds NaN or infinity"),
    "mixed types": (change_tensors(set_half), "must have one type"),
    "cut": (cut, "model.safetensors cannot be read"),
    "shard not there": (
        lambda f: write_index(f, "model.norm.weight", "model-00001-of-00002.safetensors"),
        "is missing; the index names it",
    ),
    "shard without its tensor": (
        lambda f: write_index(f, "model.other.weight", "model.safetensors"),
        "which the index says it has",
    ),
    "index elsewhere": (lambda f: write_index(f, "a", "../b"), "it names other folders"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "holds no *.safetensors"),
    "code in a pickle": (replace_by_pickle({"a": Dangerous()}), "pytorch_model.bin cannot be read"),
    "no tensors in a pickle": (replace_by_pickle({"a": 1}), "it is no table of tensors"),
}


def make_mistakes(source: Path, folder: Path) -> dict[str, tuple[Result, list[str]]]:
    results = {}
    for number, (name, (change, _)) in enumerate(MISTAKES.items()):
        hf = folder / f"{number}"
        shutil.copytree(source, hf)
        change(hf)
        (folder / "out").mkdir()
        result = import_hf(hf, folder / "out" / "ours")
        results[name] = (result, [path.name for path in (folder / "out").iterdir()])
        shutil.rmtree(folder / "out")
    return results


@pytest.fixture(scope="module")
def mistakes(converted: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    source = converted[0] / "original" / "hf"
    return spawn(make_mistakes, 1, source, tmp_path_factory.mktemp("mistakes"))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(name: str, mistakes: Any) -> None:
    (code, out, err), left = mistakes[name]
    assert code == 2 and MISTAKES[name][1] in err and len(err.splitlines()) == 1, err
    assert not out and not left


def test_as_a_program_a_mistake_is_one_line_too(tmp_path: Path) -> None:
    tool = TOOLS / "convert_hf_to_megatron.py"
    flags = ("--hf-path", tmp_path / "nowhere", "--save", tmp_path / "ours")
    command = [str(part) for part in (sys.executable, tool, *flags)]
    environment = {**os.environ, "PYTHONPATH": str(TOOLS.parent)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert result.stderr.startswith("convert_hf_to_megatron: ")
    assert len(result.stderr.splitlines()) == 1


def refuse_targets(source: Path, ours: Path, folder: Path) -> list[Result]:
    (folder / "mine").mkdir()
    (folder / "mine" / "file").write_text("precious")
    results = [
        import_hf(source, folder / "mine", "--overwrite"),
        import_hf(source, ours),
        import_hf(source, ours, "--overwrite"),
        import_hf(source, folder / "new", "--model-type", "other"),
        export_hf(folder / "mine", folder / "new", "original"),
        export_hf(ours, source, "original", "--overwrite"),
    ]
    original = llama_config._rotary_base
    llama_config._rotary_base = lambda text: 10_000
    try:
        results.append(import_hf(source, folder / "new", "--verify"))
    finally:
        llama_config._rotary_base = original
    shutil.copytree(ours, folder / "damaged")
    for file in (folder / "damaged" / "release").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:100])
    results.append(export_hf(folder / "damaged", folder / "new", "original"))
    return results


def test_targets_and_verification(converted: Any, tmp_path: Path) -> None:
    folder, _ = converted
    ours = tmp_path / "ours"
    shutil.copytree(folder / "original" / "ours", ours)
    results = spawn(refuse_targets, 1, folder / "original" / "hf", ours, tmp_path)
    expected = (
        "was not made by a conversion",
        "pass --overwrite",
        "",
        "--model-type other is unknown",
        "holds no checkpoint",
        "was not made by a conversion",
        "the converted model computes something else",
        "bytes and was written with",
    )
    for (code, _, err), message in zip(results, expected, strict=True):
        assert code == (2 if message else 0) and message in err, err
        assert len(err.splitlines()) == (1 if message else 0), err
    assert (tmp_path / "mine" / "file").read_text() == "precious"
    assert not (tmp_path / "new").exists()


def assign_type(source: Path, folder: Path) -> list[Result]:
    change_config(model_type="renamed")(source)
    return [
        import_hf(source, folder / "ours", "--model-type", "emu3"),
        export_hf(folder / "ours", folder / "back", "transformers"),
    ]


def test_the_model_type_can_be_given(converted: Any, tmp_path: Path) -> None:
    shutil.copytree(converted[0] / "transformers" / "hf", tmp_path / "hf")
    results = spawn(assign_type, 1, tmp_path / "hf", tmp_path)
    assert [code for code, _, _ in results] == [0, 0], results
    assert read_tensors(tmp_path / "back").keys() == read_tensors(tmp_path / "hf").keys()
