"""What is frozen stays, what is trained moves, and a task that does not occur does no harm."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.layouts import Layout, StepResult, run_layout, tiny_config
from support.runs import run_config, train, train_all, write_dataset
from support.spawn import spawn
from support.tiny_data import write_shards

from megatron_aia.models import load_model_spec
from megatron_aia.runtime.parallel import create_parallel, initialize_process_group
from megatron_aia.training.optimizer import build_optimizer
from megatron_aia.training.setup import build_models

TOWER = ("vision_model.*",)
TP = {"tensor_model_parallel_size": 2}
PP = {"pipeline_model_parallel_size": 2}
OVERLAP = {
    "use_distributed_optimizer": True,
    "overlap_grad_reduce": True,
    "overlap_param_gather": True,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), family="janus_pro")


def steps(data: Path, layout: Layout, num_steps: int, ratio: str, *freeze: str) -> StepResult:
    config = tiny_config(data, layout, freeze=freeze)
    config = replace(config, data=replace(config.data, task_ratio=ratio))
    return run_layout(config, num_steps)


def janus(parallel: dict[str, Any] | None = None) -> Layout:
    return Layout(parallel or {}, family="janus_pro")


def test_frozen_parameters_stay_and_all_others_move(shards: Path) -> None:
    before = spawn(steps, 1, shards, janus(), 1, "2:2:1:1", *TOWER)
    for world_size, layout in ((1, janus()), (4, janus({**TP, **PP, **OVERLAP}))):
        after = spawn(steps, world_size, shards, layout, 3, "2:2:1:1", *TOWER)
        for name, weight in before.weights.items():
            frozen = name.startswith("vision_model.")
            assert torch.equal(after.weights[name], weight) == frozen, name
            assert (name in after.gradients) != frozen
        assert after.grad_norms[0] == pytest.approx(before.grad_norms[0], rel=1e-5)


@pytest.mark.parametrize("ratio", ["1:0", "0:1", "0:0:1"])
@pytest.mark.parametrize("freeze", [(), TOWER], ids=["tower trained", "tower frozen"])
def test_a_step_without_a_task(shards: Path, ratio: str, freeze: tuple[str, ...]) -> None:
    """With overlap, megatron-core waits for the gradient of every parameter."""
    alone = spawn(steps, 1, shards, janus(), 2, ratio, *freeze)
    together = spawn(steps, 4, shards, janus({**TP, **OVERLAP}), 2, ratio, *freeze)
    assert together.grad_norms == pytest.approx(alone.grad_norms, rel=1e-5)
    draws, looks = ratio == "1:0", ratio == "0:1"
    moved = {"generation_head": draws, "generation_embedding": draws, "vision_projection": looks}
    for name, gradient in alone.gradients.items():
        part = name.split(".")[0]
        if part in moved:
            assert bool(gradient.any()) == moved[part], name


def state_sizes(data: Path, *freeze: str) -> tuple[int, int, int]:
    """Return elements trained, of the gradient buffers, and of the optimizer."""
    config = tiny_config(data, janus(), freeze=freeze)
    initialize_process_group(1)
    parallel = create_parallel(config.parallel, config.model.num_layers, seed=0)
    models = build_models(config, load_model_spec("janus_pro"), parallel)
    optimizer = build_optimizer(config, models, parallel)
    trained = sum(p.numel() for m in models for p in m.parameters() if p.requires_grad)
    buffers = sum(buffer.grad_data.numel() for m in models for buffer in m.buffers)
    held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return trained, buffers, held


def test_frozen_parameters_cost_no_gradient_and_no_optimizer(shards: Path) -> None:
    all_trained, _, _ = spawn(state_sizes, 1, shards)
    trained, buffers, held = spawn(state_sizes, 1, shards, *TOWER)
    assert trained < all_trained
    assert held == trained
    assert trained <= buffers < trained + 4096  # buffers are padded


def refuse(data: Path, parallel: dict[str, Any], *freeze: str) -> str:
    try:
        steps(data, janus(parallel), 1, "1:1", *freeze)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("parallel", "freeze", "message"),
    [
        (PP, "vision_tower.*", "--freeze vision_tower.* fits no parameter; names begin with dec"),
        (PP, "*", "leaves a pipeline stage nothing to train"),
        ({"pipeline_model_parallel_size": 4}, "decoder.*", "leaves a pipeline stage nothing"),
    ],
)
def test_a_wrong_pattern_is_one_line_on_every_rank(
    shards: Path, parallel: dict[str, Any], freeze: str, message: str
) -> None:
    size = parallel["pipeline_model_parallel_size"]
    assert message in spawn(refuse, size, shards, parallel, freeze)


def resume_otherwise(config: Any) -> str:
    try:
        train(config)
    except ValueError as error:
        return str(error)
    finally:
        dist.barrier()
    return ""


def test_resume_in_another_layout(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", "janus_pro")
    zero = {"use_distributed_optimizer": True}

    def config(parallel: dict[str, Any], end: int, freeze: tuple[str, ...], **paths: str) -> Any:
        run = run_config(data, janus({**parallel, **zero}), end, **paths)
        return replace(run, training=replace(run.training, freeze=freeze))

    whole = str(tmp_path / "whole")
    uninterrupted = spawn(train, 4, config({**TP, **PP}, 4, TOWER, save=whole, save_interval=2))
    paths = {"load": f"{whole}/iter_0000002", "save": str(tmp_path / "resumed")}
    configs = {"TP 2 + SP": config({**TP, "sequence_parallel": True}, 4, TOWER, **paths)}
    (resumed,) = spawn(train_all, 2, configs).values()
    assert [record.iteration for record in resumed] == [3, 4]
    for ours, theirs in zip(resumed, uninterrupted[2:], strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-5)
    error = spawn(resume_otherwise, 1, config({}, 4, (), **paths))
    assert "was trained with --freeze vision_model.*, this run has no pattern" in error
