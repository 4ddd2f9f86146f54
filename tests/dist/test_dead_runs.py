"""Runs that learn nothing any more, and replicas that part, end and say so."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn

from megatron_aia.analysis.records import read_records
from megatron_aia.config import Config
from megatron_aia.runtime.parallel import destroy_parallel
from megatron_aia.training import trainer as trainer_file
from megatron_aia.training.replicas import DeadRunError
from megatron_aia.training.trainer import Trainer

TP = {"tensor_model_parallel_size": 2}
DISTRIBUTED = {
    "use_distributed_optimizer": True,
    "overlap_grad_reduce": True,
    "overlap_param_gather": True,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def train_without_end(config: Config) -> str:
    """Train with a loss that is not finite from the third step on; return what ends the run."""
    trainer = Trainer(config)
    forward = trainer.spec.forward

    def poisoned(*args: Any) -> Any:
        output = forward(*args)
        return {"nll": output["nll"] * (torch.nan if trainer.progress.iteration >= 3 else 1)}

    trainer.spec = replace(trainer.spec, forward=poisoned)
    with pytest.raises(DeadRunError) as caught:
        trainer.run()
    destroy_parallel()
    return str(caught.value)


def test_a_run_that_skips_step_after_step_ends(data: Path, tmp_path: Path) -> None:
    config = run_config(data, Layout(), 20, save=str(tmp_path), save_interval=1, save_total_limit=2)
    config = replace(config, logging=replace(config.logging, log_interval=4))
    said = spawn(train_without_end, 2, config)
    assert "not finite in 3 steps in a row (up to iteration 6)" in said
    kept = sorted(path.name for path in tmp_path.glob("iter_*"))
    assert kept[:2] == ["iter_0000002", "iter_0000003"], "the last good ones"
    records = read_records(tmp_path)
    assert [record.iteration for record in records] == [1, 4, 6], "the last steps are logged too"
    assert records[-1].total_skipped == 3
    patient = replace(config.training, max_skipped_in_a_row=5)
    said = spawn(train_without_end, 2, replace(config, training=patient))
    assert "in 5 steps in a row (up to iteration 8)" in said


def break_one_replica(config: Config) -> tuple[bool, int]:
    """Break a reduced gradient of the last rank in step 2, as a failing device would.

    Returns:
        Whether the replicas are equal afterwards, and how many steps were skipped.
    """
    trainer = Trainer(config)
    apply = trainer_file.apply_gradients

    def broken(optimizer: Any, clip: float) -> tuple[bool, float]:
        if trainer.progress.iteration == 1 and dist.get_rank() == dist.get_world_size() - 1:
            parameter = next(trainer.models[0].parameters())
            parameter.main_grad.view(-1)[0] = torch.nan
        return apply(optimizer, clip)

    trainer_file.apply_gradients = broken
    trainer.run()
    trainer_file.apply_gradients = apply
    first = torch.cat([p.detach().flatten() for p in trainer.models[0].parameters()])
    replicas = [torch.zeros_like(first) for _ in range(trainer.parallel.data_size)]
    dist.all_gather(replicas, first, group=trainer.parallel.groups.dp)
    skipped = trainer.progress.total_skipped
    destroy_parallel()
    return all(torch.equal(each, first) for each in replicas), skipped


@pytest.mark.parametrize(
    ("world_size", "layout"), [(2, Layout()), (4, Layout(TP))], ids=["DP 2", "TP 2 x DP 2"]
)
def test_a_gradient_that_breaks_on_one_replica_is_skipped_on_all(
    world_size: int, layout: Layout, data: Path, tmp_path: Path
) -> None:
    config = run_config(data, layout, 3, save=str(tmp_path))
    assert spawn(break_one_replica, world_size, config) == (True, 1)


def part(config: Config) -> str:
    """Flip the last bit of one weight of the last rank after step 1; return what ends the run."""
    trainer = Trainer(config)
    trainer._step(trainer.feed.step(trainer.progress.position))
    if dist.get_rank() == dist.get_world_size() - 1:
        weight = dict(trainer.models[0].named_parameters())["module.decoder.final_layernorm.weight"]
        bits = weight.detach().view(torch.int32)
        bits[3] ^= 1
    with pytest.raises(DeadRunError) as caught:
        trainer.run()
    destroy_parallel()
    return str(caught.value)


def test_replicas_that_differ_in_a_bit_end_the_run(data: Path, tmp_path: Path) -> None:
    config = run_config(data, Layout(), 4, save=str(tmp_path))
    training = replace(config.training, check_weight_hash_across_dp_replicas_interval=2, lr=0.0)
    said = spawn(part, 2, replace(config, training=replace(training, min_lr=0.0)))
    assert "rank 1 and rank 0 hold the same part of the model and differ in 1 of" in said
    assert "final_layernorm.weight" in said


@pytest.mark.parametrize("layout", [Layout(TP), Layout(DISTRIBUTED)], ids=["TP 2", "overlapped"])
def test_equal_replicas_go_on(layout: Layout, data: Path, tmp_path: Path) -> None:
    config = run_config(data, layout, 4, save=str(tmp_path))
    training = replace(config.training, check_weight_hash_across_dp_replicas_interval=1)
    records = spawn(train, 4, replace(config, training=training))
    assert records[-1].iteration == 4
