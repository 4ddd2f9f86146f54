"""Janus-Pro from Hugging Face to this project and back, and from one layout to the other."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from support.hugging_face import read_tensors
from support.janus_checkpoints import (
    IMAGE_TOKEN_ID,
    JanusFixture,
    build_model,
    know_the_tower,
    write_checkpoint,
)
from support.spawn import spawn
from support.tools import Result, export_hf, import_hf

from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.checkpoint.io import CheckpointIO
from megatron_aia.checkpoint.run_state import RunState, architecture
from megatron_aia.config import AIAConfig, ParallelConfig, TrainingConfig
from megatron_aia.config.files import dump
from megatron_aia.models import load_model_spec, read_run_config
from megatron_aia.models.janus_pro.hf_config import model_config
from megatron_aia.runtime.parallel import create_parallel, initialize_process_group
from megatron_aia.training.optimizer import apply_gradients, build_optimizer, build_scheduler
from megatron_aia.training.setup import build_models

HALF = torch.bfloat16
FIXTURES = {
    "transformers": JanusFixture("transformers", groups=2, head_size=6),
    "transformers, bf16": JanusFixture("transformers", groups=4, dtype=HALF),
    "original": JanusFixture("original", groups=1, head_size=14),
    "original .bin": JanusFixture("original .bin", dtype=HALF),
}
KEPT_BY_THE_AUTHORS_ONLY = {
    "vision_model.vision_tower.attn_pool.latent",
    "gen_vision_model.quantize.codebook_used",
}
FOUR = ParallelConfig(
    tensor_model_parallel_size=2,
    pipeline_model_parallel_size=2,
    num_layers_per_virtual_pipeline_stage=1,
    use_distributed_optimizer=True,
)


def layout_of(name: str) -> str:
    return name.partition(" ")[0].strip(",")


def convert_all(folder: Path) -> dict[str, list[Result]]:
    know_the_tower()
    return {
        name: [
            import_hf(folder / name / "hf", folder / name / "ours", "--verify"),
            export_hf(folder / name / "ours", folder / name / "original", "original"),
            export_hf(folder / name / "ours", folder / name / "transformers", "transformers"),
        ]
        for name in FIXTURES
    }


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Result]]]:
    """A folder with hf, ours and both layouts for each fixture, and what the tools said."""
    know_the_tower()
    folder = tmp_path_factory.mktemp("convert")
    for name, fixture in FIXTURES.items():
        write_checkpoint(fixture, folder / name / "hf")
    return folder, spawn(convert_all, 1, folder)


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key


@pytest.mark.parametrize("name", FIXTURES)
def test_there_and_back_is_bit_identical(name: str, converted: Any) -> None:
    folder, results = converted
    assert [code for code, _, _ in results[name]] == [0, 0, 0], results[name]
    before, after = (read_tensors(folder / name / part) for part in ("hf", layout_of(name)))
    assert_same(before, after)


def test_from_one_layout_to_the_other(converted: Any) -> None:
    """The fixtures of both layouts are one model, so each export has to equal the other source."""
    folder, _ = converted
    model = build_model(FIXTURES["original"])
    assert_same(dict(model.state_dict()), read_tensors(folder / "original" / "transformers"))
    theirs = read_tensors(folder / "original" / "hf")
    from_transformers = read_tensors(folder / "transformers" / "original")
    assert theirs.keys() - from_transformers.keys() == KEPT_BY_THE_AUTHORS_ONLY
    assert not from_transformers.keys() - theirs.keys()


@pytest.mark.parametrize("name", FIXTURES)
def test_logits_equal_transformers(name: str, converted: Any) -> None:
    """--verify fails above 1e-4; in fp32 there is much room."""
    lines = [line for line in converted[1][name][0][1].splitlines() if "verified" in line]
    assert [line.split()[1] for line in lines] == ["text", "generation", "understanding"]
    for line in lines:
        assert float(line.partition("(")[2].split()[0]) < 1e-5, line
        assert "top-1 agreement 100.00%" in line


@pytest.mark.parametrize("name", FIXTURES)
def test_exports_load_in_transformers(name: str, converted: Any) -> None:
    import transformers

    folder, _ = converted
    source = build_model(FIXTURES[name])
    model, info = transformers.JanusForConditionalGeneration.from_pretrained(
        folder / name / "transformers", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == FIXTURES[name].dtype
    assert model.config.image_token_id == IMAGE_TOKEN_ID
    assert not model.config.tie_word_embeddings
    for key, tensor in source.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
    if FIXTURES[name].dtype == HALF:
        return  # a model made bf16 in memory has rounded rotary frequencies, a loaded one has not
    ids = torch.randint(300, (2, 60), generator=torch.Generator().manual_seed(1))
    codes = torch.randint(67, (1, 25), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(source(input_ids=ids).logits, model(input_ids=ids).logits)
        assert torch.equal(source.decode_image_tokens(codes), model.decode_image_tokens(codes))


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_configuration_and_files_of_both_layouts(name: str, layout: str, converted: Any) -> None:
    know_the_tower()
    folder, _ = converted
    before, after = (
        json.loads((folder / name / part / "config.json").read_text()) for part in ("hf", layout)
    )
    assert model_config(before) == model_config(after)
    assert after["model_type"] == {"original": "multi_modality", "transformers": "janus"}[layout]
    files = {path.name for path in (folder / name / layout).iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= files
    if layout == layout_of(name):
        assert not {"preprocessor_config.json", "processor_config.json"} & files
        return
    processor = json.loads((folder / name / layout / "processor_config.json").read_text())
    assert processor["num_image_tokens"] == 25
    settings = json.loads((folder / name / layout / "tokenizer_config.json").read_text())
    assert ("extra_special_tokens" in settings) == (layout == "transformers")


def load_and_save(source: Path, run: Path, parallel: ParallelConfig, bf16: bool) -> None:
    """Load converted weights in a layout, take a step that changes nothing, and save."""
    config = replace(
        read_run_config(str(find_checkpoint(source) / "config.yaml")),
        aia=AIAConfig(aia=False),
        parallel=parallel,
        training=TrainingConfig(bf16=bf16, lr=0.0, min_lr=0.0),
    )
    initialize_process_group(1)
    layout = create_parallel(parallel, config.model.num_layers, seed=1)
    models = build_models(config, load_model_spec("janus_pro"), layout, fresh_weights=False)
    optimizer = build_optimizer(config, models, layout)
    checkpoints = CheckpointIO(models, optimizer, build_scheduler(config, optimizer), layout)
    model = architecture(config.model)
    checkpoints.load(source, model, "distributed", (), weights_only=True)
    for chunk in models:
        chunk.zero_grad_buffer()
    apply_gradients(optimizer, clip_grad=1.0)  # at a learning rate of 0: makes Adam's state
    state = RunState(1, 0, 0, "", model, checkpoints.layout(), "distributed")
    checkpoints.begin(run, state, dump(config)).finish()


def export_known(run: Path, assets: Path, target: Path, layout: str) -> Result:
    know_the_tower()
    return export_hf(run, target, layout, "--assets", assets)


@pytest.mark.parametrize(
    "name", ["transformers", "transformers, bf16", "original", "original .bin"]
)
def test_through_two_by_two_and_an_interleaved_pipeline(
    name: str, converted: Any, tmp_path: Path
) -> None:
    folder, layout, fixture = converted[0] / name, layout_of(name), FIXTURES[name]
    # A single query group cannot be split.
    tensor = min(2, fixture.groups)
    parallel = replace(FOUR, tensor_model_parallel_size=tensor)
    run = tmp_path / "run"
    spawn(load_and_save, 4, folder / "ours", run, parallel, fixture.dtype == HALF)
    target = tmp_path / "back"
    code, _, err = spawn(export_known, 1, run, folder / "ours", target, layout)
    assert code == 0, err
    assert_same(read_tensors(folder / "hf"), read_tensors(target))


def change(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return apply


ALIGNER = ("aligner_config", "params")
MISTAKES: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "other tower": (
        "original",
        change("vision_config", "params", "model_name", value="sam_b"),
        "the image tower 'sam_b' is not known",
    ),
    "fewer layers of the tower": (
        "original",
        change("vision_config", "params", "select_layer", value=-2),
        "vision_model.vision_tower.blocks.2.",
    ),
    "deeper aligner": ("original", change(*ALIGNER, "depth", value=3), "depth of aligner_config"),
    "no decoder": ("original", lambda c: c.pop("language_config"), "neither language_config nor"),
    "no codebook": (
        "original",
        change("gen_vision_config", "params", "image_token_size", value=None),
        "codebook_size is None, no whole number above 0",
    ),
    "other activation": (
        "transformers",
        change("vision_config", "hidden_act", value="gelu_tanh"),
        "hidden_act is 'gelu_tanh'",
    ),
    "aligner of Transformers": (
        "transformers",
        change("vision_config", "depth", value=1),
        "the aligners have 1 and 2 layers",
    ),
    "other codebook": (
        "transformers",
        change("vq_config", "num_embeddings", value=66),
        "its configuration says [66, 6]",
    ),
}


def make_mistakes(folder: Path, out: Path) -> dict[str, tuple[Result, list[str]]]:
    know_the_tower()
    results = {}
    for number, (name, (source, mistake, _)) in enumerate(MISTAKES.items()):
        path = folder / source / "hf" / "config.json"
        text = path.read_text()
        config = json.loads(text)
        mistake(config)
        path.write_text(json.dumps(config))
        target = out / f"{number}"
        target.mkdir()
        result = import_hf(path.parent, target / "ours")
        results[name] = (result, [left.name for left in target.iterdir()])
        path.write_text(text)
    return results


def test_a_mistake_is_one_line_and_leaves_nothing(converted: Any, tmp_path: Path) -> None:
    for name, ((code, out, err), left) in spawn(make_mistakes, 1, converted[0], tmp_path).items():
        assert code == 2 and MISTAKES[name][2] in err and len(err.splitlines()) == 1, (name, err)
        assert not out and not left, name


def test_a_tower_without_a_name_is_refused(converted: Any, tmp_path: Path) -> None:
    """A model read from Transformers' layout may have a tower that the authors never named."""
    source = converted[0] / "transformers" / "ours"
    code, _, err = spawn(export_without_names, 1, source, tmp_path / "out")
    assert code == 2 and "has no name for an image tower of 3 layers of width 20" in err
    assert not (tmp_path / "out").exists()


def export_without_names(source: Path, target: Path) -> Result:
    from megatron_aia.models.janus_pro import hf_config

    hf_config.TOWERS.clear()
    return export_hf(source, target, "original")
