"""Files that earlier versions left in the folder of a run are read on."""

import json
from pathlib import Path

import pytest
from toy_data import toy_batches, toy_samples, write_folder

from megatron_aia.aia.roles import Task
from megatron_aia.analysis.records import LogRecord
from megatron_aia.config import CheckpointConfig, Config
from megatron_aia.data.replacements import CorruptSample
from megatron_aia.training.corrupt_list import CORRUPT_FILE, CorruptList

RECORD = {
    "iteration": 1,
    "train_iters": 4,
    "consumed_samples": 12,
    "seconds_per_iteration": 1.4,
    "tokens_per_second": 2556.3,
    "learning_rate": 0.0,
    "grad_norm": 3.9,
    "skipped_iterations": 0,
    "total_skipped": 0,
    "loss": 8.0,
    "ntp_loss": 7.0,
    "ntp_by_task": {"generation": 7.15, "understanding": 7.25},
    "aia_by_task": {"generation": 0.25, "understanding": 0.75},
    "intensity": {"generation": [0.2, 0.3], "understanding": [0.8, 0.9]},
    "target": {"generation": [0.4, 0.2], "understanding": [0.1, 0.2]},
    "padding_fraction": 0.25,
    "damaged_samples": 3,
}


def test_a_record() -> None:
    record = LogRecord.from_json(json.dumps(RECORD))
    assert record.terms == {"ntp": 7.0, "aia": 1.0}
    assert record.losses["ntp"] == {Task.GENERATION: 7.15, Task.UNDERSTANDING: 7.25}
    assert record.losses["aia"] == {Task.GENERATION: 0.25, Task.UNDERSTANDING: 0.75}
    assert record.corrupt_samples == 3


def test_the_list_of_corrupt_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = [*toy_samples("generation", 7), *toy_samples("understanding", 2)]
    data = write_folder(tmp_path / "data", samples)
    mixture = toy_batches(data).mixture
    index = mixture.indexes[0]
    entry = {
        "folder": str(index.folder),
        "sample": index.key(2),
        "number": 2,
        "reason": "x",
        "step_position": None,
    }
    run = tmp_path / "run"
    run.mkdir()
    (run / "damaged_samples.jsonl").write_text(json.dumps(entry) + "\n")
    found = CorruptList(Config(checkpoint=CheckpointConfig(save=str(run))), mixture)
    assert list(found.earlier()) == [(0, 2)]
    found.add([CorruptSample(0, 2, "x"), CorruptSample(0, 5, "y")], position=8)
    assert len(found) == 2
    written = [json.loads(line) for line in (run / CORRUPT_FILE).read_text().splitlines()]
    assert [(e["number"], e["step_position"]) for e in written] == [(5, 8)]
