"""A third family trains with one table line: equal in every layout, resumed, with its teacher."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import Layout, StepResult, relative_difference, run_layout, tiny_config
from support.runs import VOCAB_SIZE, run_config, train, train_all, write_dataset
from support.spawn import spawn
from support.toy_mistakes import TOY_MISTAKES, Plant

from megatron_aia.config import Config
from megatron_aia.models import extra_family

TOLERANCE = 1e-5
VISIBLE = 1e-3
TP = {"tensor_model_parallel_size": 2}
PP = {"pipeline_model_parallel_size": 2}
CP = {"context_parallel_size": 2}
SP = {"sequence_parallel": True}
VPP = {"num_layers_per_virtual_pipeline_stage": 1}
# Biases of keys hardly change a softmax: Adam's own epsilon would make steps of rounding errors.
ADAM_EPS = 1e-3
FULL = {"recompute_granularity": "full"}
TOY = Layout(family="toy")
LAYOUTS = {
    1: {"reference": replace(TOY, packing=False), "packed": TOY}
    | {"micro-batch 2, recompute": replace(TOY, parallel=FULL, micro_batch_size=2)},
    2: {
        "TP 2": replace(TOY, parallel=TP),
        "TP 2 + SP": replace(TOY, parallel=TP | SP),
        "PP 2": replace(TOY, parallel=PP),
        "DP 2": TOY,
        "CP 2": replace(TOY, parallel=CP),
    },
    4: {
        "TP 2 x PP 2 x VPP 2 + SP + recompute": replace(TOY, parallel=TP | PP | VPP | SP | FULL),
        "TP 2 x CP 2 + SP": replace(TOY, parallel=TP | CP | SP),
        "PP 2 x DP 2 unpacked": replace(TOY, parallel=PP, packing=False),
    },
}
EQUAL = [name for group in LAYOUTS.values() for name in group if name != "reference"]


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with extra_family("toy", "support.toy_family.family"):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("toy") / "data")


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a toy of other weights, saved by two pipeline stages."""
    folder = tmp_path_factory.mktemp("teacher")
    layout = replace(TOY, parallel=PP)
    config = run_config(data, layout, 1, save=str(folder))
    config = replace(config, run=replace(config.run, seed=7))
    spawn(train, 2, without_teacher(config))
    return str(folder)


def without_teacher(config: Config) -> Config:
    return replace(config, model=replace(config.model, teacher_loss_weight=0.0))


def with_teacher(config: Config, folder: str) -> Config:
    return replace(
        config,
        model=replace(config.model, text_vocab_size=VOCAB_SIZE),
        checkpoint=replace(config.checkpoint, teacher_checkpoint=folder),
    )


def layout_config(data: Path, layout: Layout, teacher: str) -> Config:
    """Return steps of sequences so short that context-parallel ranks share a picture."""
    config = with_teacher(tiny_config(data, layout, adam_eps=ADAM_EPS), teacher)
    return replace(config, data=replace(config.data, seq_length=96))


def run_all(configs: dict[str, Config]) -> dict[str, StepResult]:
    return {name: run_layout(config) for name, config in configs.items()}


@pytest.fixture(scope="module")
def results(data: Path, teacher: str) -> dict[str, StepResult]:
    found: dict[str, StepResult] = {}
    for world_size, layouts in LAYOUTS.items():
        configs = {name: layout_config(data, layout, teacher) for name, layout in layouts.items()}
        found |= spawn(run_all, world_size, configs)
    return found


@pytest.mark.parametrize("name", EQUAL)
def test_equal_to_one_process(name: str, results: dict[str, StepResult]) -> None:
    result, reference = results[name], results["reference"]
    torch.testing.assert_close(result.losses, reference.losses, rtol=TOLERANCE, atol=0)
    assert result.aia_loss.keys() == reference.aia_loss.keys() == set(range(4))
    assert relative_difference(result, reference) < TOLERANCE
    assert result.grad_norms == pytest.approx(reference.grad_norms, rel=TOLERANCE)


def test_every_loss_and_every_weight_takes_part(results: dict[str, StepResult]) -> None:
    reference = results["reference"]
    assert reference.losses.shape[0] == 3 and (reference.losses[:, 0] > 0).all()
    assert {"lanes.weight", "vector_head.weight"} < reference.gradients.keys()
    for name, gradient in reference.gradients.items():
        assert gradient.abs().max() > 0, name
    lanes = reference.gradients["lanes.weight"]
    assert lanes[0].norm() > 0 and lanes[1].norm() > 0


def run_mistakes(mistakes: list[tuple[Plant, Config]]) -> list[StepResult]:
    results = []
    for plant, config in mistakes:
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            results.append(run_layout(config, num_steps=1, check_replicas=False))
    return results


@pytest.mark.parametrize("world_size", TOY_MISTAKES)
def test_mistakes_are_seen(
    world_size: int, data: Path, teacher: str, results: dict[str, StepResult]
) -> None:
    """Of normalisers, the teacher and the tied embedding."""
    planted = [
        (plant, layout_config(data, layout, teacher)) for plant, layout in TOY_MISTAKES[world_size]
    ]
    found = spawn(run_mistakes, world_size, planted)
    for (plant, _), result in zip(planted, found, strict=True):
        errors = [
            float((result.gradients[name] - expected).norm() / expected.norm())
            for name, expected in results["reference"].gradients.items()
        ]
        assert max(errors) > VISIBLE, plant.__name__


def test_it_resumes_in_another_layout(data: Path, teacher: str, tmp_path: Path) -> None:
    def config(iterations: int, layout: dict[str, Any], **checkpoint: Any) -> Config:
        changed = replace(TOY, parallel=layout)
        return with_teacher(run_config(data, changed, iterations, **checkpoint), teacher)

    whole, part = str(tmp_path / "whole"), str(tmp_path / "part")
    configs = {"whole": config(4, TP | SP, save=whole), "part": config(2, TP | SP, save=part)}
    expected = spawn(train_all, 2, configs)["whole"]
    resumed = spawn(train, 2, config(4, PP, load=part, save=str(tmp_path / "rest")))
    assert [record.iteration for record in resumed] == [3, 4]
    for record, other in zip(resumed, expected[2:], strict=True):
        assert set(record.terms) == {"ntp", "vec", "kl", "aia"}
        assert record.terms == pytest.approx(other.terms, rel=1e-4)
        assert record.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
