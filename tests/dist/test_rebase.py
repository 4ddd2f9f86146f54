"""--rebase-data: a run goes on with other data from its first sample, and resumes there exactly.

The other data is a mixture file, whose second phase begins inside a step of the run.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.layouts import Layout
from support.runs import run_config, write_dataset
from support.spawn import spawn

from megatron_aia.analysis.records import LogRecord, read_records
from megatron_aia.checkpoint.folder import RunState, find_checkpoint, read_state
from megatron_aia.config import Config
from megatron_aia.data.loader import GlobalBatches
from megatron_aia.runtime.parallel import destroy_parallel
from megatron_aia.training.trainer import Trainer

SWITCH, END = 2, 5
MIXTURE = """
sources:
  drawing: {path: ., task: generation}
  rest: {path: ., limit: 20}
phases:
  - {samples: 17, weights: {drawing: 2, rest: 1}}
  - {weights: {drawing: 1, rest: 1}}
"""


def steps_of(config: Config) -> tuple[list[LogRecord], list[list[torch.Tensor]]]:
    """Train; return the records of this start and the tokens of its steps."""
    trainer = Trainer(config)
    first, steps = trainer.iteration, []
    original = GlobalBatches.step

    def step(self: GlobalBatches, position: int) -> Any:
        batches = original(self, position)
        steps.append([batch.tokens for batch in batches])
        return batches

    GlobalBatches.step = step  # type: ignore[method-assign]
    try:
        trainer.run()
    finally:
        GlobalBatches.step = original  # type: ignore[method-assign]
    dist.barrier()
    destroy_parallel()
    assert config.checkpoint.save
    return [r for r in read_records(Path(config.checkpoint.save)) if r.iteration > first], steps


def run_all(configs: dict[str, Config]) -> dict[str, Any]:
    return {name: steps_of(config) for name, config in configs.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run, the same with other data from step 2 on, and restarts of that one at its step 4."""
    data = write_dataset(tmp_path_factory.mktemp("data"))
    mixture = data / "mixture.yaml"
    mixture.write_text(MIXTURE)
    folder = tmp_path_factory.mktemp("runs")

    def config(name: str, path: Path, end: int, source: str = "", **more: Any) -> Config:
        load = {"load": str(folder / source)} if source else {}
        save = str(folder / name)
        made = run_config(path, Layout(), end, save=save, save_interval=1, **load, **more)
        ratio = "1:1" if path == mixture else "2:2:1:1"
        return replace(made, data=replace(made.data, task_ratio=ratio))

    configs = {
        "first": config("first", data, SWITCH),
        "fresh": config("fresh", mixture, END - SWITCH),
        "rebased": config("rebased", mixture, END, "first", rebase_data=True),
        "resumed": config("resumed", mixture, END, "rebased/iter_0000004"),
        "restarted": config("restarted", mixture, END, "rebased/iter_0000004", rebase_data=True),
    }
    return folder, spawn(run_all, 1, configs)


def test_new_data_begins_at_its_first_sample(runs: Any) -> None:
    records, steps = runs[1]["rebased"]
    _, fresh = runs[1]["fresh"]
    assert len(steps) == END - SWITCH
    for ours, theirs in zip(steps, fresh, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert [record.iteration for record in records] == [3, 4, 5]
    assert [record.consumed_samples for record in records] == [30, 40, 50]


def test_weights_optimizer_and_schedule_go_on(runs: Any) -> None:
    (fresh, _), (rebased, _) = runs[1]["fresh"], runs[1]["rebased"]
    assert rebased[0].loss < fresh[0].loss
    first, _ = runs[1]["first"]
    assert rebased[0].learning_rate != first[0].learning_rate


@pytest.mark.parametrize("name", ["resumed", "restarted"])
def test_the_rebased_run_resumes_exactly(name: str, runs: Any) -> None:
    """Without the flag, and with it: the command line of a job that a cluster restarts."""
    (records, steps), (expected, their_steps) = runs[1][name], runs[1]["rebased"]
    assert [r.iteration for r in records] == [5]
    assert all(map(torch.equal, steps[0], their_steps[-1]))
    assert (records[0].loss, records[0].grad_norm) == (expected[-1].loss, expected[-1].grad_norm)


def test_the_checkpoint_says_where_the_data_began(runs: Any) -> None:
    def state(name: str) -> RunState:
        return read_state(find_checkpoint(runs[0] / name))

    assert (state("first").consumed_samples, state("first").data_start) == (20, 0)
    for name in ("rebased", "resumed", "restarted"):
        assert (state(name).consumed_samples, state(name).data_start) == (50, 20)
    assert state("rebased").data_fingerprint == state("fresh").data_fingerprint
