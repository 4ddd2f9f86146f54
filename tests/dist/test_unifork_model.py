"""UniFork's published size, and what its branches share."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import Layout, StepResult, relative_error, run_layout, tiny_config
from support.runs import run_config, train, train_all, write_dataset
from support.spawn import spawn
from support.tiny_data import write_shards
from test_unifork_layouts import ADAM_EPS

from megatron_aia.config import Config, ParallelConfig
from megatron_aia.models import load_model_spec, preset_table
from megatron_aia.models.lanes import Way
from megatron_aia.models.unifork import model as unifork_model
from megatron_aia.models.unifork import network
from megatron_aia.models.unifork.depth_head import DepthLayer
from megatron_aia.runtime.parallel import create_parallel, initialize_process_group

PUBLISHED = 1_212_777_728
"""With the output matrix counted beside the embedding that it is."""
CODEBOOK, OUTPUT = 16_385 * 1024, 151_936 * 896
UNIFORK = Layout(family="unifork")
TP = replace(UNIFORK, parallel={"tensor_model_parallel_size": 2})
VISIBLE = 1e-3


def count_parameters() -> int:
    config = preset_table()["unifork_0_5b"].build()
    one = ParallelConfig(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    initialize_process_group(1)
    parallel = create_parallel(one, config.model.num_layers, seed=0)
    with torch.device("meta"):
        model = load_model_spec("unifork").build(replace(config, parallel=one), parallel, 0)
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_preset_has_the_published_size() -> None:
    """The codebook is the image tokeniser's, which the paper does not count."""
    assert spawn(count_parameters, 1) + OUTPUT - CODEBOOK == PUBLISHED


def draw_by_the_other_branch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(unifork_model, "Way", lambda lane, aia: Way(0, aia))


def share_the_last_norm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "BRANCHES", ("understanding", "understanding"))


def keep_the_heads_gradient_apart(patch: pytest.MonkeyPatch) -> None:
    """Every rank takes its part of the gradient of the head's input for the whole."""
    make = DepthLayer.__init__

    def init(self: Any, *args: Any) -> None:
        make(self, *args)
        self.query.allreduce_dgrad, self.query.disable_grad_reduce = False, True

    patch.setattr(DepthLayer, "__init__", init)


MISTAKES = {1: [draw_by_the_other_branch, share_the_last_norm], 2: [keep_the_heads_gradient_apart]}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), family="unifork")


def run_mistakes(config: Config, mistakes: list[Any]) -> list[StepResult]:
    results: list[StepResult] = []
    for plant in mistakes:
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            results.append(run_layout(config, num_steps=1, check_replicas=False))
    return results


@pytest.mark.parametrize("world_size", MISTAKES)
def test_mistakes_are_seen(world_size: int, shards: Path) -> None:
    config = tiny_config(shards, TP if world_size == 2 else UNIFORK, adam_eps=ADAM_EPS)
    right: StepResult = spawn(run_layout, world_size, config, 1)
    found = spawn(run_mistakes, world_size, config, MISTAKES[world_size])
    for plant, result in zip(MISTAKES[world_size], found, strict=True):
        errors = [
            relative_error(result.gradients[name], expected)
            for name, expected in right.gradients.items()
            if name in result.gradients and expected.norm() > 1e-6
        ]
        assert max(errors) > VISIBLE, plant.__name__


def test_it_resumes_in_another_layout(tmp_path: Path) -> None:
    def config(iterations: int, layout: dict[str, Any], **checkpoint: Any) -> Config:
        return run_config(data, replace(UNIFORK, parallel=layout), iterations, **checkpoint)

    data = write_dataset(tmp_path / "data", "unifork")
    split = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    stages = {"pipeline_model_parallel_size": 2}
    whole, part = str(tmp_path / "whole"), str(tmp_path / "part")
    configs = {"whole": config(4, split, save=whole), "part": config(2, split, save=part)}
    expected = spawn(train_all, 2, configs)["whole"]
    resumed = spawn(train, 2, config(4, stages, load=part, save=str(tmp_path / "rest")))
    assert [record.iteration for record in resumed] == [3, 4]
    for record, other in zip(resumed, expected[2:], strict=True):
        assert record.terms == pytest.approx(other.terms, rel=1e-4)
        assert record.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
