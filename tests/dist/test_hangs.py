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

from megatron_aia.checkpoint import io
from megatron_aia.config import Config
from megatron_aia.data import prefetch
from megatron_aia.runtime import watchdog as watchdog_file
from megatron_aia.training.synced_loader import SyncedLoader

LIMIT = 7.0
"""Seconds that stand for --distributed-timeout-minutes 1; collectives keep theirs."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def configure(data: Path, folder: Path, num_workers: int = 0) -> Config:
    config = run_config(data, Layout(), 6, save=str(folder), save_interval=2)
    return replace(
        config,
        data=replace(config.data, num_workers=num_workers),
        parallel=replace(config.parallel, distributed_timeout_minutes=1),
    )


def hang(*args: Any) -> None:
    time.sleep(1000)


def hanging_publish(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(io, "publish", hang)


def hanging_folder(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(io, "_fresh_folder", hang)


def hanging_sums(patch: pytest.MonkeyPatch) -> None:
    read = io.sum_files_of_rank
    patch.setattr(io, "sum_files_of_rank", lambda path, rank: hang() if rank else read(path, rank))


def stopped_workers(patch: pytest.MonkeyPatch) -> None:
    """All processes that read samples are stopped in the second step, as by a file system."""
    build = prefetch._MicroBatches.__getitem__

    def stop(self: Any, request: Any) -> Any:
        if request.position:
            os.kill(os.getpid(), signal.SIGSTOP)
        return build(self, request)

    patch.setattr(prefetch._MicroBatches, "__getitem__", stop)


def stopped_rank(patch: pytest.MonkeyPatch) -> None:
    """Rank 1 is stopped before ranks agree on the third step, when they wait on the host."""
    agree = SyncedLoader._agree
    calls = 0

    def stop(self: Any, has_problem: bool) -> bool:
        nonlocal calls
        calls += 1
        if calls == 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return agree(self, has_problem)

    patch.setattr(SyncedLoader, "_agree", stop)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], int, str]] = {
    "publish": (
        hanging_publish,
        0,
        "of: saving a checkpoint: publishing it",
    ),
    "folder": (hanging_folder, 0, "of: saving a checkpoint: making its folder"),
    "sums": (hanging_sums, 0, "of: saving a checkpoint: reading its tensors again"),
    "workers": (stopped_workers, 2, "of: reading the samples of a step"),
    "rank": (stopped_rank, 0, "of: reading the samples of a step"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hang_ends_the_run(
    fault: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, num_workers, said = FAULTS[fault]
    patch(monkeypatch)
    monkeypatch.setattr(watchdog_file, "SECONDS_A_MINUTE", LIMIT)
    log = tmp_path / "log"
    start = time.monotonic()
    job = Job(configure(data, tmp_path / "run", num_workers), 2, log)
    assert job.wait(60) == 1
    assert time.monotonic() - start < LIMIT + 25
    assert not job.processes()
    text = log.read_text()
    assert said in text
    assert "most recent call first" in text, "the stacks"


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
