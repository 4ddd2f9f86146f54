"""Runs that are killed again and again end with the numbers of a run that was left alone."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from support.job import Job, LaunchedJob
from support.layouts import Layout
from support.runs import run_config, write_dataset

from megatron_aia.analysis.records import METRICS_FILE, LogRecord, read_records
from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.config import Config

pytestmark = pytest.mark.versions

STEPS = 8
TP, PP = {"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}
LAYOUTS = {
    "DP 2": (2, Layout()),
    "PP 2": (2, Layout(PP)),
    "TP 2": (2, Layout(TP)),
    "TP 2 x PP 2": (4, Layout({**TP, **PP, "sequence_parallel": True})),
    "DP 3": (3, Layout({"use_distributed_optimizer": True})),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@dataclass
class Killer:
    """Kills a run at moments that a seed chooses."""

    random: random.Random
    folder: Path
    """Of the run's checkpoints."""
    longest: float
    """Seconds that a whole run takes."""

    def strike(self, job: Job) -> bool:
        """Wait for a moment and kill; return whether the job was still there."""
        moment = self.random.choice(["any", "step", "save", "publish"])
        start, delay = time.monotonic(), self.random.uniform(0, 0.05)
        if moment == "any":
            delay = self.random.uniform(0, self.longest)
        else:
            before = self._state(moment)
            while self._state(moment) == before and job.is_running():
                assert time.monotonic() < start + 120, f"waiting for a {moment}"
        time.sleep(delay)
        was_running = job.is_running()
        job.kill(self.random)
        return was_running

    def _state(self, moment: str) -> object:
        """Return what changes when the moment comes."""
        if moment == "step":
            metrics = self.folder / METRICS_FILE
            return metrics.stat().st_size if metrics.exists() else 0
        pattern = ".iter_*.writing" if moment == "save" else "iter_*"
        return frozenset(path.name for path in self.folder.glob(pattern))


def job_config(
    data: Path, layout: Layout, folder: Path, num_workers: int, async_save: bool = False
) -> Config:
    config = run_config(
        data,
        layout,
        STEPS,
        save=str(folder),
        load=str(folder),
        save_interval=1,
        save_total_limit=2,
        async_save=async_save,
    )
    return replace(config, data=replace(config.data, num_workers=num_workers))


def run_with_kills(start: Callable[[], Job], killer: Killer, num_kills: int) -> int:
    """Start a run as often as it takes; return how often it was killed before its end."""
    kills = 0
    while True:
        job = start()
        kills += kills < num_kills and killer.strike(job)
        if job.wait() == 0:
            return kills


def comparable(record: LogRecord) -> tuple[object, ...]:
    return (
        record.iteration,
        record.consumed_samples,
        record.loss,
        record.grad_norm,
        record.learning_rate,
        record.losses["ntp"],
        record.losses["aia"],
    )


def assert_kills_change_nothing(
    data: Path,
    folder: Path,
    name: str,
    num_kills: int,
    start_job: type[Job] = Job,
    async_save: bool = False,
) -> None:
    """Run one layout undisturbed, and killed, as often as it takes for so many kills."""
    world_size, layout = LAYOUTS[name]
    log, alone = folder / "log", folder / "alone"
    start = time.monotonic()
    assert start_job(job_config(data, layout, alone, 0), world_size, log).wait() == 0, (
        log.read_text()
    )
    longest = time.monotonic() - start
    expected = [comparable(record) for record in read_records(alone)]
    kills = runs = 0
    while kills < num_kills:
        killed = folder / f"run {runs}"
        config = job_config(data, layout, killed, (runs + 2) % 3, async_save)
        killer = Killer(random.Random(runs), killed, longest)
        kills += run_with_kills(
            partial(start_job, config, world_size, log), killer, num_kills - kills
        )
        assert [comparable(record) for record in read_records(killed)] == expected
        assert find_checkpoint(killed).name == f"iter_{STEPS:07d}"
        assert not list(killed.glob(".iter_*"))
        runs += 1


@pytest.mark.parametrize("async_save", [False, True])
def test_a_few_kills_change_no_number(data: Path, tmp_path: Path, async_save: bool) -> None:
    assert_kills_change_nothing(data, tmp_path, "DP 2", 2, async_save=async_save)


@pytest.mark.slow
@pytest.mark.parametrize("async_save", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_many_kills_change_no_number(
    name: str, data: Path, tmp_path: Path, async_save: bool
) -> None:
    assert_kills_change_nothing(data, tmp_path, name, 20, async_save=async_save)


@pytest.mark.slow
def test_kills_of_a_launched_run_change_no_number(data: Path, tmp_path: Path) -> None:
    assert_kills_change_nothing(data, tmp_path, "DP 2", 4, LaunchedJob)
