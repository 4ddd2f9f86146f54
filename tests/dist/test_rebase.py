"""--reset-data: a run goes on with other data from its first sample, and resumes there exactly.

The other data is a mixture file, whose second phase begins inside a step of the run.
"""

import io
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from support.layouts import Layout
from support.runs import run_config, write_dataset
from support.spawn import spawn

from megatron_aia.analysis.records import LogRecord, read_records
from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.checkpoint.run_state import RunState, read_state
from megatron_aia.config import Config
from megatron_aia.data.loader import StepLoader
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


class Start(NamedTuple):
    """What one start of a run left behind."""

    records: list[LogRecord]
    steps: list[list[torch.Tensor]]
    """Tokens of its micro-batches."""
    log: str


def train(config: Config) -> Start:
    trainer, log = Trainer(config), io.StringIO()
    logging.getLogger("megatron_aia").addHandler(logging.StreamHandler(log))
    first, steps = trainer.progress.iteration, []
    original = StepLoader.step

    def step(self: StepLoader, position: int) -> Any:
        batches = original(self, position)
        steps.append([batch.tokens for batch in batches])
        return batches

    StepLoader.step = step  # type: ignore[method-assign]
    try:
        trainer.run()
    finally:
        StepLoader.step = original  # type: ignore[method-assign]
    dist.barrier()
    destroy_parallel()
    assert config.checkpoint.save
    records = [r for r in read_records(Path(config.checkpoint.save)) if r.iteration > first]
    return Start(records, steps, log.getvalue())


def train_all(configs: dict[str, Config]) -> dict[str, Start]:
    return {name: train(config) for name, config in configs.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Start]]:
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
        "rebased": config("rebased", mixture, END, "first", reset_data=True),
        "resumed": config("resumed", mixture, END, "rebased/iter_0000004"),
        "restarted": config("restarted", mixture, END, "rebased/iter_0000004", reset_data=True),
    }
    return folder, spawn(train_all, 1, configs)


def test_new_data_begins_at_its_first_sample(runs: Any) -> None:
    records, steps, _ = runs[1]["rebased"]
    assert len(steps) == END - SWITCH
    for ours, theirs in zip(steps, runs[1]["fresh"].steps, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert [record.iteration for record in records] == [3, 4, 5]
    assert [record.consumed_samples for record in records] == [30, 40, 50]


def test_weights_optimizer_and_schedule_go_on(runs: Any) -> None:
    first, fresh, rebased = (runs[1][name].records for name in ("first", "fresh", "rebased"))
    assert rebased[0].loss < fresh[0].loss
    assert rebased[0].learning_rate != first[0].learning_rate


@pytest.mark.parametrize("name", ["resumed", "restarted"])
def test_the_rebased_run_resumes_exactly(name: str, runs: Any) -> None:
    """Without the flag, and with it: the command line of a job that a cluster restarts."""
    (record,), (step,), _ = runs[1][name]
    expected = runs[1]["rebased"]
    assert record.iteration == END
    assert all(map(torch.equal, step, expected.steps[-1]))
    last = expected.records[-1]
    assert (record.loss, record.grad_norm) == (last.loss, last.grad_norm)


def test_the_log_counts_what_was_drawn_on_a_resume_and_at_the_end(runs: Any) -> None:
    log = runs[1]["resumed"].log
    assert "20 samples so far: " in log.split("iteration 5/5")[0]
    # 11 and 6 in the first phase; 13 in the second, whose 6 periods have 6 and 6.
    counts = ("30 samples so far: 18 drawing", "30 samples so far: 17 drawing")
    assert any(count in log.split("iteration 5/5")[1] for count in counts)
    assert "so far" not in runs[1]["rebased"].log.split("iteration 3/5")[0]


def test_the_checkpoint_says_where_the_data_began(runs: Any) -> None:
    def state(name: str) -> RunState:
        return read_state(find_checkpoint(runs[0] / name))

    assert (state("first").consumed_samples, state("first").data_start) == (20, 0)
    for name in ("rebased", "resumed", "restarted"):
        assert (state(name).consumed_samples, state(name).data_start) == (50, 20)
    assert state("rebased").data_fingerprint == state("fresh").data_fingerprint


def failure_of(config: Config) -> str:
    with pytest.raises(ValueError) as error:
        Trainer(config)
    destroy_parallel()
    return str(error.value)


def test_a_run_longer_than_its_phases_is_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    file = data / "mixture.yaml"
    file.write_text("sources: {all: .}\nphases: [{samples: 39, weights: {all: 1}}]")
    config = run_config(file, Layout(), train_iters=4)
    message = spawn(failure_of, 1, replace(config, data=replace(config.data, task_ratio="1:1")))
    assert "phases of the mixture end after 39 samples, and the run draws 40" in message
