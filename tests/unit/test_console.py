import dataclasses
import json
import math

import numpy as np
import pytest

from megatron_aia.aia.roles import Task
from megatron_aia.analysis.records import (
    METRICS_FILE,
    LogRecord,
    append_record,
    end_lines,
    read_records,
)
from megatron_aia.training.console import (
    EtaEstimator,
    format_banner,
    format_duration,
    format_record,
)


def make_record(**changes) -> LogRecord:
    record = LogRecord(
        iteration=120,
        train_iters=400,
        consumed_samples=960,
        seconds_per_iteration=0.41,
        tokens_per_second=12345.6,
        learning_rate=2e-5,
        grad_norm=1.5,
        skipped_iterations=0,
        total_skipped=0,
        loss=5.1234,
        terms={"ntp": 5.0, "aia": 0.31},
        losses={
            "ntp": {Task.GENERATION: 5.25, Task.UNDERSTANDING: 3.125},
            "aia": {Task.GENERATION: 0.21, Task.UNDERSTANDING: 0.1},
        },
        intensity={Task.GENERATION: np.array([0.1, math.nan])},
        target={Task.GENERATION: np.array([0.4, 0.2])},
        padding_fraction=0.25,
    )
    return dataclasses.replace(record, **changes)


def test_line_names_every_value():
    assert format_record(make_record(), eta_seconds=115) == (
        "iteration 120/400 (30 %)  ETA 0:01:55 | 0.41 s/iter   12,346 tokens/s | lr 2.0e-05"
        " | loss 5.123  ntp gen 5.250 und 3.125  aia gen 0.210 und 0.100"
        " | grad 1.500  skipped 0"
    )


def test_missing_values_keep_their_columns():
    full = format_record(make_record(), eta_seconds=115)
    sparse = format_record(
        make_record(losses={"ntp": {Task.GENERATION: 5.25}, "aia": {}}, grad_norm=math.nan),
        eta_seconds=math.inf,
    )
    assert "und     -  aia gen     - und     - | grad     -" in sparse
    assert len(sparse) == len(full)
    assert sparse.index("skipped") == full.index("skipped")


def test_broken_values_and_skipped_steps_are_seen():
    line = format_record(
        make_record(loss=math.nan, grad_norm=math.inf, skipped_iterations=2, total_skipped=7), 0
    )
    assert "loss nan" in line
    assert "grad   inf" in line
    assert line.endswith("skipped 2 (total 7)")


def test_corrupt_samples_are_seen():
    assert format_record(make_record(corrupt_samples=3), 1).endswith("skipped 0  corrupt 3")


def test_other_tasks_appear_when_they_have_a_loss():
    line = format_record(make_record(losses={"ntp": {Task.TEXT: 2.0, Task.MIXED: 1.0}}), 0)
    assert "ntp gen     - und     - text 2.000 mixed 1.000" in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (3e6, "34 d 17 h"), (math.nan, "-")],
)
def test_duration(seconds, text):
    assert format_duration(seconds) == text


def test_eta_forgets_a_slow_first_step_and_follows_a_change():
    estimator = EtaEstimator()
    assert estimator.update(make_record(iteration=1, seconds_per_iteration=20.0)) == 399 * 20.0
    for iteration in range(10, 201, 10):
        eta = estimator.update(make_record(iteration=iteration, seconds_per_iteration=0.5))
    assert eta == pytest.approx(200 * 0.5, rel=0.02)
    for iteration in range(210, 301, 10):
        eta = estimator.update(make_record(iteration=iteration, seconds_per_iteration=1.0))
    assert eta == pytest.approx(100 * 1.0, rel=0.1)


def test_eta_after_a_resume_counts_only_its_own_steps():
    assert EtaEstimator(100).update(make_record(seconds_per_iteration=2.0)) == 280 * 2.0


def test_banner_aligns_and_wraps():
    lines = format_banner([("model", "emu3"), ("layout", "TP 2 x PP 2, " * 20)]).splitlines()
    assert lines[0] == lines[-1] == "-" * 100
    assert lines[1] == "model   emu3"
    assert lines[2].startswith("layout  TP 2")
    assert lines[3].startswith("        ")
    assert max(map(len, lines)) <= 100


def test_record_survives_json():
    record = make_record(grad_norm=math.nan, loss=math.inf, losses={"ntp": {}})
    line = record.to_json()
    assert "NaN" not in line and "Infinity" not in line and "\n" not in line
    restored = LogRecord.from_json(line)
    assert restored.to_json() == line
    assert math.isnan(restored.grad_norm) and restored.loss == math.inf
    assert restored.losses == {"ntp": {}} and restored.terms == record.terms
    np.testing.assert_array_equal(restored.intensity[Task.GENERATION], [0.1, math.nan])
    assert isinstance(restored.iteration, int)


def test_record_takes_numpy_scalars():
    record = make_record(loss=np.float32(0.5), iteration=np.int64(3))
    assert LogRecord.from_json(record.to_json()).loss == 0.5


@pytest.mark.parametrize("line", ["", "[1]", "{}", '{"iteration": 1', '{"iteration": "x"}'])
def test_what_is_not_a_record_is_refused(line):
    with pytest.raises(ValueError, match="not a log record"):
        LogRecord.from_json(line)


def test_resumed_run_replaces_what_it_repeats(tmp_path):
    for iteration, loss in [(10, 3.0), (20, 2.0), (30, 1.0), (20, 2.5)]:
        append_record(tmp_path, make_record(iteration=iteration, loss=loss))
    records = read_records(tmp_path)
    assert [(record.iteration, record.loss) for record in records] == [(10, 3.0), (20, 2.5)]


def test_record_of_an_older_program_is_read():
    values = json.loads(make_record(corrupt_samples=3).to_json())
    del values["corrupt_samples"]
    assert LogRecord.from_json(json.dumps(values)).corrupt_samples == 0


@pytest.mark.parametrize("cut", [1, 10, 300])
def test_line_that_a_kill_cut_goes_before_the_next(tmp_path, cut):
    path = tmp_path / METRICS_FILE
    end_lines(path)
    append_record(tmp_path, make_record(iteration=10))
    whole = path.read_bytes()
    append_record(tmp_path, make_record(iteration=20))
    path.write_bytes(path.read_bytes()[:-cut])
    end_lines(path)
    assert path.read_bytes() == whole
    append_record(tmp_path, make_record(iteration=20))
    assert [record.iteration for record in read_records(tmp_path)] == [10, 20]


def test_reading_names_the_broken_line(tmp_path):
    append_record(tmp_path, make_record())
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"iteration"')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a log record"):
        read_records(tmp_path)


def test_reading_a_folder_without_records(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_records(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="holds no records"):
        read_records(tmp_path)
