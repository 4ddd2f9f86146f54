"""Signals and time limits: the run saves and stops, and goes on as if nothing had been."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.job import Job, wait_until
from support.layouts import Layout
from support.runs import run_config, write_dataset

from megatron_aia.analysis.records import METRICS_FILE, read_records
from megatron_aia.checkpoint.folder import find_checkpoint, has_checkpoint
from megatron_aia.config import Config
from megatron_aia.training import stop_signal
from megatron_aia.training.stop_signal import StopSignal
from megatron_aia.training.synced_loader import SyncedLoader

STEPS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps long enough for a signal to come between them."""
    agree = SyncedLoader._agree

    def slowly(self: SyncedLoader, has_problem: bool) -> bool:
        time.sleep(0.05)
        return agree(self, has_problem)

    monkeypatch.setattr(SyncedLoader, "_agree", slowly)


def configure(data: Path, folder: Path, **checkpoint: object) -> Config:
    config = run_config(data, Layout(), STEPS, save=str(folder), load=str(folder))
    options = {"exit_signal_handler": True, **checkpoint}
    return replace(config, checkpoint=replace(config.checkpoint, **options))


def start(config: Config, log: Path, steps: int = 2) -> Job:
    """Start a run of two ranks and wait for its first steps."""
    job = Job(config, 2, log)
    metrics = Path(config.checkpoint.save or "") / METRICS_FILE
    wait_until(
        lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= steps,
        60,
        "the run does not begin",
    )
    return job


def ranks(job: Job) -> list[int]:
    return [process for process in job.processes() if process != job.leader]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize("to_all", [True, False], ids=["all ranks", "one rank"])
def test_a_signal_saves_and_stops(name: str, to_all: bool, data: Path, tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"
    job = start(configure(data, folder), log)
    for process in ranks(job) if to_all else ranks(job)[-1:]:
        os.kill(process, getattr(signal, name))
    assert job.wait(60) == 0, log.read_text()
    records = read_records(folder)
    assert 2 <= records[-1].iteration < STEPS
    assert find_checkpoint(folder).name == f"iter_{records[-1].iteration:07d}"
    assert f"stopped by a signal at iteration {records[-1].iteration}" in log.read_text()


def test_other_signals_do_what_they_do(data: Path, tmp_path: Path) -> None:
    config = configure(data, tmp_path / "run", exit_signal=("SIGUSR2",))
    job = start(config, tmp_path / "log")
    for process in ranks(job):
        os.kill(process, signal.SIGTERM)
    assert job.wait(60) != 0
    assert not has_checkpoint(tmp_path / "run")


def test_a_second_interrupt_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGUSR1)}
    try:
        stop = StopSignal(["SIGINT", "SIGUSR1"])
        assert not stop.received
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert stop.received
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_the_last_save_begins_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(stop_signal, "time", SimpleNamespace(monotonic=lambda: now))
    stop = StopSignal(minutes=10)
    now = 1000 + 599
    assert not stop.received
    stop.note_save(40)
    stop.note_save(20)
    now = 1000 + 539
    assert not stop.received
    now = 1000 + 541
    assert stop.received, "61 s before, for a save of 40 to 60"


@pytest.mark.parametrize(("given", "grace"), [(None, 30), ("600", 600)])
def test_a_save_that_the_launcher_would_cut_is_told_once(
    given: str | None, grace: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SECONDS_TO_SAVE", raising=False)
    if given:
        monkeypatch.setenv("SECONDS_TO_SAVE", given)
    monkeypatch.setattr(stop_signal.signal, "signal", lambda *handler: None)
    with caplog.at_level("WARNING"):
        for stop in (StopSignal(["SIGUSR1"]), StopSignal()):
            for seconds in (grace - 1, grace + 1, grace + 2):
                stop.note_save(seconds)
    said = f"a save took {grace + 1} s, and the launcher kills {grace} s after a signal"
    assert [said in record.getMessage() for record in caplog.records] == [True]


def test_a_run_with_little_time_stops_and_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute of a clock that runs 25 times as fast."""
    fast = SimpleNamespace(monotonic=lambda: 25 * time.monotonic())
    monkeypatch.setattr(stop_signal, "time", fast)
    folder = tmp_path / "run"
    config = configure(data, folder, exit_signal_handler=False, exit_duration_in_mins=1)
    assert Job(config, 2, tmp_path / "log").wait(60) == 0, (tmp_path / "log").read_text()
    last = read_records(folder)[-1].iteration
    assert 1 <= last < STEPS
    assert find_checkpoint(folder).name == f"iter_{last:07d}"
    assert "are left of --exit-duration-in-mins" in (tmp_path / "log").read_text()
