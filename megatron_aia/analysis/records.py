"""What a run reports at a log step, and the file that keeps it: one JSON line a record."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union

import numpy as np

from megatron_aia.aia.roles import Task

METRICS_FILE = "metrics.jsonl"

AIA_TERM = "aia"
"""Name of the AIA term among the loss terms."""

R = TypeVar("R", bound="JsonRecord")

JsonNumber = Union[int, float, str, None]


@dataclass(frozen=True, eq=False)
class JsonRecord:
    """A dataclass that is one line of JSON."""

    def to_json(self) -> str:
        """Return the record as one line of standard JSON: NaN is ``null``, infinity a string."""
        values = {
            field.name: _encode(getattr(self, field.name)) for field in dataclasses.fields(self)
        }
        return json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls: type[R], line: str) -> R:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: the line is not such a record.
        """
        try:
            values = _translate(json.loads(line))
            return cls(
                **{
                    field.name: _decode(field, values)
                    for field in dataclasses.fields(cls)
                    # Records of before there was the field do without it.
                    if field.name in values or not _has_default(field)
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a log record: {error!r}") from error


@dataclass(frozen=True, eq=False)
class LogRecord(JsonRecord):
    """Everything reported at one log step. The interval is the steps since the previous one.

    A value that does not exist is NaN, a task without a value has no entry.
    """

    iteration: int
    """Steps done, skipped ones included; the first step is 1."""
    train_iters: int
    """Steps of the whole run."""
    consumed_samples: int
    """Samples read since the start of the run, over all data-parallel ranks."""
    seconds_per_iteration: float
    """Mean wall time of a step of the interval, in seconds."""
    tokens_per_second: float
    """Real tokens, padding not counted, of the whole cluster."""
    learning_rate: float
    """Of the last step of the interval."""
    grad_norm: float
    """Of the last step that updated the weights, before clipping; NaN if none did."""
    skipped_iterations: int
    """Steps of the interval whose update was skipped."""
    total_skipped: int
    """Skipped steps since the start of the run."""
    loss: float
    """The objective: the sum of ``terms``."""
    terms: dict[str, float]
    """By loss term: its part of the objective, weights and normalisers included."""
    losses: dict[str, dict[Task, float]]
    """By loss term and task: the mean of the term's values over their weights, in nats for
    ``ntp``. For ``aia``: what the task adds to the objective, lambda included."""
    intensity: dict[Task, np.ndarray]
    """Mean intensity over the active samples of the interval, ``[L]`` in 0..1."""
    target: dict[Task, np.ndarray]
    """Intensity the profile asks of each decoder layer, ``[L]`` in 0..1."""
    padding_fraction: float
    """Share of the positions of the interval's sequences that hold no real token, in 0..1."""
    intensity_std: dict[Task, np.ndarray] = dataclasses.field(default_factory=dict)
    """Standard deviation over the same samples, ``[L]``; NaN for fewer than two."""
    corrupt_samples: int = 0
    """Corrupt samples known so far; replacements are read in their place."""
    phases: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds a step, mean over ranks: ``data`` (waiting for it), ``forward_backward``,
    ``gradient_reduction``, ``optimizer``, ``validation``, ``save``. The rest is none of them."""
    slowest_rank: int = -1
    """Whose forward and backward took longest."""
    rank_spread: float = math.nan
    """That time over the shortest of all ranks."""
    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    """Bytes, the most of all ranks in the interval: ``allocated`` and ``reserved`` of a GPU and
    its ``total``; ``resident`` of a CPU process."""
    tflops_per_device: float = math.nan
    """10^12 operations a second that the model needs, on each device; nothing counts twice."""
    aia_tflops_per_device: float = math.nan
    """What intensities add to that."""
    mfu: float = math.nan
    """``tflops_per_device`` over the device's peak; NaN where that is not known."""


def _translate(values: dict[str, Any]) -> dict[str, Any]:
    """Translate a record of an earlier version: loss terms without names, other words."""
    if "damaged_samples" in values:
        values["corrupt_samples"] = values["damaged_samples"]
    if "ntp_loss" in values:
        aia = values["aia_by_task"]
        values["terms"] = {"ntp": values["ntp_loss"]}
        values["losses"] = {"ntp": values["ntp_by_task"]}
        if values["target"]:
            values["terms"][AIA_TERM] = sum(map(_decode_number, aia.values()))
            values["losses"][AIA_TERM] = aia
    return values


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def task_name(task: Task) -> str:
    """Return the name of a task in files and charts, such as ``generation``."""
    return task.name.lower()


def append_record(folder: Path, record: JsonRecord, file_name: str = METRICS_FILE) -> None:
    """Add ``record`` to a file of ``folder``, which must exist."""
    with open(folder / file_name, "a", encoding="utf-8") as file:
        file.write(record.to_json() + "\n")


def end_lines(path: Path) -> None:
    """Cut the end of a JSON-lines file that a killed run left in the middle of a line.

    The run that goes on reports again what stood there: it had saved nothing since.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def read_records(folder: Path) -> list[LogRecord]:
    """Return the records of a run in ascending order of iteration.

    A run that resumed from a checkpoint repeats iterations that it had reported before; its
    records replace all of the abandoned ones from there on.

    Raises:
        ValueError: the file is missing, empty or holds something else.
    """
    return read_lines(folder / METRICS_FILE, LogRecord, "logged a step")


def read_lines(path: Path, kind: type[R], what: str) -> list[R]:
    """Read a file of records as :func:`read_records` does.

    Args:
        path: of the file.
        kind: of its records, which have an ``iteration``.
        what: the run has done, to be in it; for the error.

    Raises:
        ValueError: the file is missing, empty or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the folder of a run that {what}")
    records: list[Any] = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record: Any = kind.from_json(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            while records and records[-1].iteration >= record.iteration:
                records.pop()
            records.append(record)
    if not records:
        raise ValueError(f"{path} holds no records: the run stopped before it {what}")
    return records


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            task_name(key) if isinstance(key, Task) else key: _encode(entry)
            for key, entry in value.items()
        }
    if isinstance(value, np.ndarray):
        return [_encode_number(entry) for entry in value.tolist()]
    return _encode_number(value)


def _encode_number(value: Union[int, float]) -> JsonNumber:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return str(float(value))
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


def _decode(field: "dataclasses.Field[Any]", values: dict[str, Any]) -> Any:
    value = values[field.name]
    if field.type is int:
        return int(value)
    if field.type is float:
        return _decode_number(value)
    if field.type == dict[str, float]:
        return {term: _decode_number(entry) for term, entry in value.items()}
    if field.type == dict[str, dict[Task, float]]:
        return {term: _by_task(entry, _decode_number) for term, entry in value.items()}
    return _by_task(value, lambda entry: np.array([_decode_number(x) for x in entry]))


def _by_task(value: dict[str, Any], decode: Callable[[Any], Any]) -> dict[Task, Any]:
    return {Task[name.upper()]: decode(entry) for name, entry in value.items()}


def _decode_number(value: JsonNumber) -> float:
    return math.nan if value is None else float(value)
