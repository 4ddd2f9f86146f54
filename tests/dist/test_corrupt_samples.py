"""A corrupt sample gets the same replacement in every layout, however and whenever it is found."""

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch.distributed as dist
from pytest import MonkeyPatch
from support.damage import spoil
from support.layouts import Layout
from support.runs import run_config, train, train_all, write_dataset
from support.spawn import spawn

from megatron_aia.analysis.records import LogRecord
from megatron_aia.config import Config
from megatron_aia.data.loader import StepLoader
from megatron_aia.training.corrupt_list import CORRUPT_FILE
from megatron_aia.training.trainer import Trainer

STOP, END = 2, 4
TOLERANCE = 1e-5
PP = {"pipeline_model_parallel_size": 2}

ONE_PROCESS = {
    "reference": (Layout(family="janus_pro"), {}),
    "micro-batch 2, unpacked, workers": (
        Layout(micro_batch_size=2, packing=False, family="janus_pro"),
        {"num_workers": 2},
    ),
}
TWO_PROCESSES = {
    "PP 2": (Layout(PP, family="janus_pro"), {}),
    "PP 2, workers": (Layout(PP, family="janus_pro"), {"num_workers": 2}),
    "DP 2, workers": (Layout(family="janus_pro"), {"num_workers": 2}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """Samples with codes that counting tokens finds, and with pictures that only decoding does."""
    pytest.importorskip("PIL")
    folder = write_dataset(tmp_path_factory.mktemp("data"), "janus_pro")
    codes = spoil(folder, "generation", ".npy", 2, header_only=True)
    pictures = spoil(folder, "understanding", ".png", 2, header_only=False)
    pictures += spoil(folder, "mixed", ".png", 1, header_only=False)
    return folder, codes, pictures


def config(data: Path, save: Path, layout: Layout, values: dict[str, Any], **more: Any) -> Config:
    run = run_config(data, layout, END, save=str(save), **more)
    return replace(run, data=replace(run.data, **values))


@pytest.fixture(scope="module")
def runs(
    data: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[LogRecord]]]:
    folder = tmp_path_factory.mktemp("runs")
    records: dict[str, list[LogRecord]] = {}
    for size, table in ((1, ONE_PROCESS), (2, TWO_PROCESSES)):
        configs = {
            name: config(data[0], folder / name, layout, values, save_interval=STOP)
            for name, (layout, values) in table.items()
        }
        records |= spawn(train_all, size, configs)
    return folder, records


def assert_equal(found: list[LogRecord], expected: list[LogRecord]) -> None:
    assert [r.iteration for r in found] == [r.iteration for r in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=TOLERANCE)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=TOLERANCE)
        assert ours.losses["ntp"] == pytest.approx(theirs.losses["ntp"], rel=TOLERANCE)


@pytest.mark.parametrize("name", [*ONE_PROCESS, *TWO_PROCESSES])
def test_the_same_numbers_in_every_layout(name: str, runs: Any) -> None:
    assert_equal(runs[1][name], runs[1]["reference"])


@pytest.mark.parametrize("name", [*ONE_PROCESS, *TWO_PROCESSES])
def test_every_damaged_sample_is_listed_once(name: str, data: Any, runs: Any) -> None:
    lines = (runs[0] / name / CORRUPT_FILE).read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    met = [entry["sample"] for entry in entries if entry["step_position"] is not None]
    counted = [entry["sample"] for entry in entries if entry["step_position"] is None]
    assert sorted(counted) == sorted(data[1])
    assert sorted(met) == sorted(data[2])
    assert {entry["folder"] for entry in entries} == {str(data[0])}
    assert runs[1][name][-1].corrupt_samples == len(entries)


@pytest.mark.parametrize(
    ("name", "keeps_list"), [("DP 2, workers", False), ("PP 2, workers", True)]
)
def test_a_resumed_run_has_the_same_replacements(
    name: str, keeps_list: bool, data: Any, runs: Any, tmp_path: Path
) -> None:
    folder, records = runs
    if keeps_list:
        shutil.copy(folder / "PP 2" / CORRUPT_FILE, tmp_path)
    layout, values = TWO_PROCESSES[name]
    load = str(folder / "PP 2" / f"iter_{STOP:07d}")
    resumed = spawn(train, 2, config(data[0], tmp_path, layout, values, load=load))
    assert_equal(resumed, records["reference"][STOP:])
    lines = (tmp_path / CORRUPT_FILE).read_text().splitlines()
    assert len(lines) == len({json.loads(line)["sample"] for line in lines})
    if keeps_list:
        assert {record.corrupt_samples for record in resumed} == {len(data[1] + data[2])}


def failure_of(config: Config) -> list[str]:
    """Return what every rank said."""
    try:
        train(config)
        message = "no error"
    except ValueError as error:
        message = f"{type(error).__name__}: {error}"
    messages = [""] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    return messages


@pytest.mark.parametrize(
    ("limit", "kind"), [(1, "ValueError"), (3, "UnreadableStep")], ids=["counted", "met"]
)
def test_more_damage_than_allowed_stops_all_ranks(
    limit: int, kind: str, data: Any, tmp_path: Path
) -> None:
    layout = Layout(PP, family="janus_pro")
    run = config(data[0], tmp_path, layout, {"max_corrupt_samples": limit})
    messages = spawn(failure_of, 2, run, timeout=60)
    assert len(set(messages)) == 1
    assert messages[0].startswith(f"{kind}: more than --max-corrupt-samples {limit} samples")
    assert "\n" not in messages[0]


def test_a_disk_that_fails_is_no_damage(data: Any, tmp_path: Path) -> None:
    messages = spawn(fail_to_read, 2, config(data[0], tmp_path, Layout(family="janus_pro"), {}))
    assert messages == ["UnreadableStep: the disk went away"] * 2
    assert "disk" not in (tmp_path / CORRUPT_FILE).read_text()


def fail_to_read(config: Config) -> list[str]:
    """Let the disk of one rank fail in the second step."""
    step = StepLoader._read_raw

    def fail(batches: StepLoader, index_number: int, sample_number: int) -> Any:
        if dist.get_rank() == 1 and failing.is_set():
            raise OSError("the disk went away")
        return step(batches, index_number, sample_number)

    failing = Event()
    log = Trainer._log
    with MonkeyPatch.context() as patch:
        patch.setattr(StepLoader, "_read_raw", fail)
        patch.setattr(Trainer, "_log", lambda trainer: (failing.set(), log(trainer)))
        return failure_of(config)


def test_a_killed_worker_stops_all_ranks(data: Any, tmp_path: Path) -> None:
    layout = Layout(family="janus_pro")
    messages = spawn(lose_a_worker, 2, config(data[0], tmp_path, layout, {"num_workers": 1}))
    assert len(set(messages)) == 1
    assert messages[0].startswith("UnreadableStep: a process that reads samples was killed")
    assert "\n" not in messages[0]


def lose_a_worker(config: Config) -> list[str]:
    """Kill the worker of one rank after the first step."""
    log = Trainer._log

    def kill(trainer: Trainer) -> None:
        for worker in multiprocessing.active_children() if dist.get_rank() == 1 else ():
            worker.kill()
        log(trainer)

    with MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_log", kill)
        return failure_of(config)
