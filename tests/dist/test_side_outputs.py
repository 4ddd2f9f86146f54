"""Logs that cannot be written cost the run a warning."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn

from megatron_aia.analysis import records as records_file
from megatron_aia.analysis.records import METRICS_FILE, read_records
from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.config import Config
from megatron_aia.training import reporter as reporter_file
from megatron_aia.training.tensorboard import TensorBoardLog
from megatron_aia.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def configure(data: Path, tmp_path: Path) -> Config:
    config = run_config(data, Layout(), 4, save=str(tmp_path / "run"))
    return replace(
        config, logging=replace(config.logging, tensorboard_dir=str(tmp_path / "events"))
    )


def full_disk(*args: Any) -> None:
    raise OSError(28, "No space left on device")


def test_nothing_that_is_beside_the_run_ends_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TensorBoardLog, "write", full_disk)
    monkeypatch.setattr(reporter_file, "append_record", full_disk)
    spawn(train_without_reading, 1, configure(data, tmp_path))
    assert find_checkpoint(tmp_path / "run").name == "iter_0000004"
    shown = "".join(capfd.readouterr())
    for what in ("TensorBoard", METRICS_FILE):
        assert shown.count(f"{what} cannot be written, and the run goes on without") == 1
        assert f"{what} was not written 4 times" in shown
    assert "No space left on device" in shown


def train_without_reading(config: Config) -> None:
    Trainer(config).run()


def test_a_line_that_was_cut_off_is_no_damage(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the middle of the second record, and has room again."""
    append = records_file.append_record

    def cut_off(folder: Path, record: Any, name: str) -> None:
        if record.iteration == 2:
            with (folder / name).open("a") as file:
                file.write(record.to_json()[:40])
            full_disk()
        append(folder, record, name)

    monkeypatch.setattr(reporter_file, "append_record", cut_off)
    spawn(train, 1, configure(data, tmp_path))
    assert [record.iteration for record in read_records(tmp_path / "run")] == [1, 3, 4]


def remove_events(config: Config, folder: Path) -> None:
    trainer = Trainer(config)
    shutil.rmtree(folder)
    trainer.run()


def test_a_folder_of_events_that_is_gone(data: Path, tmp_path: Path) -> None:
    spawn(remove_events, 1, configure(data, tmp_path), tmp_path / "events")
    assert find_checkpoint(tmp_path / "run").name == "iter_0000004"


def refuse(config: Config) -> str:
    with pytest.raises(ValueError, match="cannot be written") as caught:
        Trainer(config)
    return str(caught.value)


def test_a_folder_that_cannot_be_made_is_one_line_on_every_rank(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter_file, "end_lines", full_disk)
    assert "No space left" in spawn(refuse, 2, configure(data, tmp_path))
