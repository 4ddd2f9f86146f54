"""Checkpoints written beside the steps are those that a step waited for, whatever happens then."""

import io
import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.job import Job, wait_until
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn

from megatron_aia.checkpoint import writing
from megatron_aia.checkpoint.choose import choose_checkpoint
from megatron_aia.checkpoint.folder import complete_checkpoints
from megatron_aia.checkpoint.pending import CheckpointWriteError
from megatron_aia.checkpoint.run_state import CONFIG_FILE, read_state, read_sums
from megatron_aia.config import Config
from megatron_aia.runtime.parallel import destroy_parallel
from megatron_aia.training.replicas import DeadRunError
from megatron_aia.training.trainer import Trainer

SECONDS = 1.0
LAYOUTS = {
    "DP 2, distributed optimizer": Layout({"use_distributed_optimizer": True}),
    "TP 2": Layout({"tensor_model_parallel_size": 2}),
    "PP 2": Layout({"pipeline_model_parallel_size": 2}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def _slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are written when the steps that follow have changed them all."""
    write = writing._write

    def late(*args: Any) -> None:
        time.sleep(SECONDS)
        write(*args)

    monkeypatch.setattr(writing, "_write", late)


def configure(data: Path, folder: Path, layout: Layout | None = None, **checkpoint: Any) -> Config:
    options = {"save_interval": 2, "async_save": True, **checkpoint}
    return run_config(data, layout or Layout(), 6, save=str(folder), **options)


def train_and_watch(config: Config) -> list[int]:
    """Train; return the steps that began while a checkpoint was being written."""
    trainer = Trainer(config)
    step, beside = trainer._step, []

    def watched(batches: Any) -> None:
        if trainer.saver.has_begun:
            beside.append(trainer.progress.iteration + 1)
        step(batches)

    trainer._step = watched  # type: ignore[method-assign]
    trainer.run()
    destroy_parallel()
    return beside


@pytest.mark.usefixtures("_slow_disk")
@pytest.mark.parametrize(
    "name", [*list(LAYOUTS)[:-1], pytest.param("PP 2", marks=pytest.mark.slow)]
)
def test_it_holds_what_the_run_was_when_it_began(name: str, data: Path, tmp_path: Path) -> None:
    beside = spawn(train_and_watch, 2, configure(data, tmp_path / "beside", LAYOUTS[name]))
    assert {3, 5} <= set(beside)
    waited = configure(data, tmp_path / "waited", LAYOUTS[name], async_save=False)
    assert not spawn(train_and_watch, 2, waited)
    for iteration in (2, 4, 6):
        ours, theirs = (tmp_path / kind / f"iter_{iteration:07d}" for kind in ("beside", "waited"))
        assert read_state(ours) == read_state(theirs)
        sums = [read_sums(path) for path in (ours, theirs)]
        assert sums[0] and sums[1]
        names = set(sums[1]) - {CONFIG_FILE}
        assert set(sums[0]) - {CONFIG_FILE} == names
        assert {name for name in names if sums[0][name] != sums[1][name]} <= {".metadata"}
        assert choose_checkpoint(ours) == ours, "its sums are those of its files"


def fail(config: Config, kind: type[BaseException]) -> str:
    trainer = Trainer(config)
    with pytest.raises(kind) as caught:
        trainer.run()
    destroy_parallel()
    return str(caught.value)


def test_a_killed_writer_ends_the_run_on_all_ranks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = writing._write

    def killed(*args: Any) -> None:
        if (tmp_path / "iter_0000002").exists() and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*args)

    monkeypatch.setattr(writing, "_write", killed)
    said = spawn(fail, 2, configure(data, tmp_path), CheckpointWriteError)
    assert "iter_0000004 cannot be written" in said
    assert "rank 1's process that writes a checkpoint was killed" in said
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["iter_0000002"]


def test_a_writer_that_fails_is_not_said_to_be_killed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise ValueError("of its own")

    monkeypatch.setattr(writing, "_write", broken)
    said = spawn(fail, 1, configure(data, tmp_path), CheckpointWriteError)
    assert "ended with exit code 1; its own error stands above" in said


def skip_from_the_third_step(config: Config) -> str:
    trainer = Trainer(config)
    forward = trainer.spec.forward

    def poisoned(*args: Any) -> Any:
        output = forward(*args)
        return {"nll": output["nll"] * (torch.nan if trainer.progress.iteration >= 2 else 1)}

    trainer.spec = replace(trainer.spec, forward=poisoned)
    with pytest.raises(DeadRunError) as caught:
        trainer.run()
    destroy_parallel()
    return str(caught.value)


@pytest.mark.usefixtures("_slow_disk")
def test_a_dead_run_completes_what_it_began(data: Path, tmp_path: Path) -> None:
    """What is written while steps are skipped makes no older one go."""
    config = configure(data, tmp_path, save_interval=1, save_total_limit=1)
    assert "in 3 steps in a row" in spawn(skip_from_the_third_step, 2, config)
    names = [path.name for path in complete_checkpoints(tmp_path)]
    assert names == [f"iter_000000{iteration}" for iteration in (1, 2, 3, 4)]
    assert not list(tmp_path.glob(".iter_*"))


def raise_in_a_step(config: Config) -> str:
    trainer = Trainer(config)
    log = io.StringIO()
    logging.getLogger("megatron_aia").addHandler(logging.StreamHandler(log))
    step = trainer._step

    def broken(batches: Any) -> None:
        if trainer.saver.has_begun:
            raise RuntimeError("broken")
        step(batches)

    trainer._step = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="broken"):
        trainer.run()
    return log.getvalue()


def test_an_error_does_not_wait_for_the_writer(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_write", lambda *args: time.sleep(1000))
    start = time.monotonic()
    said = spawn(raise_in_a_step, 1, configure(data, tmp_path))
    assert "iter_0000002 was still being written and is lost" in said
    assert time.monotonic() - start < 60


@pytest.mark.usefixtures("_slow_disk")
def test_a_signal_while_one_is_written_saves_both(data: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    config = configure(data, folder, exit_signal_handler=True)
    job = Job(config, 2, log)
    wait_until(lambda: bool(list(folder.glob(".iter_*2.writing"))), 60, "no save begins")
    for process in job.processes():
        if process != job.leader:
            os.kill(process, signal.SIGTERM)
    assert job.wait(60) == 0, log.read_text()
    names = [path.name for path in complete_checkpoints(folder)]
    last = int(names[-1].split("_")[1])
    assert names[0] == "iter_0000002"
    assert f"stopped by a signal at iteration {last}" in log.read_text()
    assert not list(folder.glob(".iter_*"))
    spawn(train, 2, replace(config, checkpoint=replace(config.checkpoint, load=str(folder))))
    assert complete_checkpoints(folder)[-1].name == "iter_0000006"
