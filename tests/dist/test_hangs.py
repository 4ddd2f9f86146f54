"""Whatever hangs, the run ends in time and says what it was."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from support.job import Job
from support.layouts import Layout
from support.runs import run_config, write_dataset

from megatron_aia.checkpoint import io, writing
from megatron_aia.config import Config
from megatron_aia.data import prefetch
from megatron_aia.runtime import watchdog as watchdog_file
from megatron_aia.training import trainer
from megatron_aia.training.synced_loader import SyncedLoader

STAMP = "FILE_OF_A_TEST"
LIMIT = 5.0
"""Seconds that stand for --distributed-timeout-minutes 1; collectives keep theirs."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def configure(data: Path, folder: Path, num_workers: int = 0, async_save: bool = False) -> Config:
    config = run_config(data, Layout(), 6, save=str(folder), save_interval=2, async_save=async_save)
    return replace(
        config,
        data=replace(config.data, num_workers=num_workers),
        parallel=replace(config.parallel, distributed_timeout_minutes=1),
    )


def note_fault() -> None:
    """Say when it begins; the last of several counts."""
    Path(os.environ[STAMP]).write_text(str(time.time()))


def hang(*args: Any) -> Any:
    note_fault()
    time.sleep(1000)


def stop() -> None:
    note_fault()
    os.kill(os.getpid(), signal.SIGSTOP)


def hanging_publish(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(io, "publish", hang)


def hanging_folder(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(io, "_fresh_folder", hang)


def hanging_sums(patch: pytest.MonkeyPatch) -> None:
    read = writing.sum_files_of_rank
    patch.setattr(
        writing, "sum_files_of_rank", lambda path, rank: hang() if rank else read(path, rank)
    )


def hanging_writer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(writing, "_write", hang)


def stopped_workers(patch: pytest.MonkeyPatch) -> None:
    """All processes that read samples are stopped in the second step, as by a file system."""
    build = prefetch._MicroBatches.__getitem__

    def build_and_stop(self: Any, request: Any) -> Any:
        if request.position:
            stop()
        return build(self, request)

    patch.setattr(prefetch._MicroBatches, "__getitem__", build_and_stop)


def stopped_rank(patch: pytest.MonkeyPatch) -> None:
    """Rank 1 is stopped before ranks agree on the third step, when they wait on the host."""
    agree = SyncedLoader._agree
    calls = 0

    def agree_and_stop(self: Any, has_problem: bool) -> bool:
        nonlocal calls
        calls += 1
        if calls == 3 and dist.get_rank() == 1:
            stop()
        return agree(self, has_problem)

    patch.setattr(SyncedLoader, "_agree", agree_and_stop)


def rank_stopped_in_a_step(patch: pytest.MonkeyPatch) -> None:
    """The other rank waits in a collective, which has a limit of its own."""
    run, calls = trainer.run_step, 0

    def run_and_stop(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 and dist.get_rank() == 1:
            stop()
        return run(*args)

    patch.setattr(trainer, "run_step", run_and_stop)


def stopped_worker_of_one_rank(patch: pytest.MonkeyPatch) -> None:
    build = prefetch._MicroBatches.__getitem__

    def build_and_stop(self: Any, request: Any) -> Any:
        if request.position and dist.get_rank() == 1:
            stop()
        return build(self, request)

    patch.setattr(prefetch._MicroBatches, "__getitem__", build_and_stop)


SAVING = "of: saving a checkpoint: "
READING = "of: reading the samples of a step"
FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], dict[str, Any], str]] = {
    "publish": (hanging_publish, {}, SAVING + "publishing it"),
    "folder": (hanging_folder, {}, SAVING + "making its folder"),
    "sums": (hanging_sums, {}, SAVING + "reading its tensors again"),
    "writer": (
        hanging_writer,
        {"async_save": True},
        SAVING + "waiting for the process that writes it",
    ),
    "workers": (stopped_workers, {"num_workers": 2}, READING),
    "worker of one rank": (stopped_worker_of_one_rank, {"num_workers": 1}, READING),
    "rank": (stopped_rank, {}, READING),
}


def seconds_to_exit(
    fault: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: float
) -> float:
    """Run into a fault; return the seconds from there to the end of all processes."""
    patch, options, said = FAULTS[fault]
    patch(monkeypatch)
    log = tmp_path / "log"
    monkeypatch.setenv(STAMP, str(tmp_path / "stamp"))
    job = Job(configure(data, tmp_path / "run", **options), 2, log)
    assert job.wait(wait) == 1
    assert not job.processes()
    text = log.read_text()
    assert said in text
    assert "most recent call first" in text, "the stacks"
    return time.time() - float((tmp_path / "stamp").read_text())


@pytest.mark.parametrize("fault", ["publish", "writer", "workers"])
def test_a_hang_ends_the_run(
    fault: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog_file, "SECONDS_A_MINUTE", LIMIT)
    assert seconds_to_exit(fault, data, tmp_path, monkeypatch, 60) < LIMIT + 15


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_from_fault_to_exit_with_a_limit_of_one_minute(
    fault: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = seconds_to_exit(fault, data, tmp_path, monkeypatch, 180)
    print(f"{fault}: {seconds:.1f} s")
    assert 55 < seconds < 90


@pytest.mark.slow
def test_a_collective_ends_by_its_own_limit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank_stopped_in_a_step(monkeypatch)
    stamp, log = tmp_path / "stamp", tmp_path / "log"
    monkeypatch.setenv(STAMP, str(stamp))
    assert Job(configure(data, tmp_path / "run"), 2, log).wait(180) == 1
    seconds = time.time() - float(stamp.read_text())
    print(f"rank in a step: {seconds:.1f} s")
    assert 55 < seconds < 90
    assert "Timed out waiting 60000ms" in log.read_text()


def test_a_run_that_goes_on_is_left_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the limit altogether, but no part of it."""
    agree = SyncedLoader._agree

    def slowly(self: Any, has_problem: bool) -> bool:
        time.sleep(LIMIT / 5)
        return agree(self, has_problem)

    monkeypatch.setattr(SyncedLoader, "_agree", slowly)
    monkeypatch.setattr(watchdog_file, "SECONDS_A_MINUTE", LIMIT)
    job = Job(configure(data, tmp_path / "run"), 2, tmp_path / "log")
    assert job.wait(60) == 0, (tmp_path / "log").read_text()
