"""Runs that are killed again and again end with the numbers of a run that was left alone."""

import random
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.job import Job
from support.layouts import Layout
from support.runs import run_config, write_dataset

from megatron_aia.analysis.records import METRICS_FILE, LogRecord, read_records
from megatron_aia.checkpoint.folder import LATEST_FILE, find_checkpoint
from megatron_aia.config import Config

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
        victims = [None, *range(len(job.ranks))]
        job.kill(self.random.choice(victims))
        return was_running

    def _state(self, moment: str) -> object:
        """Return what changes when the moment comes."""
        if moment == "step":
            metrics = self.folder / METRICS_FILE
            return metrics.stat().st_size if metrics.exists() else 0
        pattern = ".iter_*.writing" if moment == "save" else "iter_*"
        return frozenset(path.name for path in self.folder.glob(pattern))


def job_config(data: Path, layout: Layout, folder: Path, num_workers: int) -> Config:
    config = run_config(
        data,
        layout,
        STEPS,
        save=str(folder),
        load=str(folder),
        save_interval=1,
        keep_checkpoints=2,
    )
    return replace(config, data=replace(config.data, num_workers=num_workers))


def run_with_kills(
    config: Config, world_size: int, killer: Killer, num_kills: int, log: Path
) -> int:
    """Start a run as often as it takes; return how often it was killed before its end."""
    kills = 0
    while True:
        job = Job(config, world_size, log)
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
        record.ntp_by_task,
        record.aia_by_task,
    )


def compare(data: Path, tmp_path: Path, name: str, num_kills: int, seed: int, workers: int) -> int:
    """Run one layout undisturbed and killed; return the number of kills."""
    world_size, layout = LAYOUTS[name]
    log = tmp_path / "log"
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    start = time.monotonic()
    assert Job(job_config(data, layout, alone, 0), world_size, log).wait() == 0, log.read_text()
    killer = Killer(random.Random(seed), killed, time.monotonic() - start)
    config = job_config(data, layout, killed, workers)
    kills = run_with_kills(config, world_size, killer, num_kills, log)
    expected = [comparable(record) for record in read_records(alone)]
    assert [comparable(record) for record in read_records(killed)] == expected
    assert find_checkpoint(killed).name == f"iter_{STEPS:07d}"
    assert (killed / LATEST_FILE).read_text() == f"{STEPS}\n"
    shutil.rmtree(killed)
    return kills


def test_a_few_kills_change_no_number(data: Path, tmp_path: Path) -> None:
    assert compare(data, tmp_path, "DP 2", num_kills=3, seed=1, workers=2) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_many_kills_change_no_number(name: str, data: Path, tmp_path: Path) -> None:
    kills = 0
    while kills < 12:
        folder = tmp_path / str(kills)
        folder.mkdir()
        kills += compare(data, folder, name, num_kills=12 - kills, seed=kills, workers=kills % 3)
