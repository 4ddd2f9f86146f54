"""What a benchmark said of a checkpoint, in one file of its folder. No torch."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from megatron_aia.runtime.atomic import write_text

RESULT_FILE = "result.json"
Status = Literal["measured", "not judged", "incomplete"]
COLUMNS = (
    *("MMMU", "MMBench", "MMVP", "MM-Vet", "POPE", "MME-P", "GenEval", "DPG", "RealUnify-UEG"),
)
"""Of every table, in this order."""


@dataclass(frozen=True)
class Metric:
    """One number of a benchmark, or why there is none."""

    name: str
    """One of ``COLUMNS``."""
    status: Status
    value: float | None
    """None unless a judge gave it; of the samples that were judged."""
    judged: int
    """Samples (or pictures) that were judged."""
    of: int
    """That the benchmark has."""
    judge: str
    """What judged: a scorer, its rules, a model."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Values by category, as the scorer calls them."""

    def __post_init__(self) -> None:
        if self.name not in COLUMNS or self.status not in get_args(Status):
            raise ValueError(f"no such metric: {self.name!r}, {self.status!r}")
        has_judge = self.status != "not judged"
        is_number = self.value is not None and math.isfinite(self.value)
        if {has_judge, is_number, self.judged > 0, self.value is not None} != {has_judge}:
            raise ValueError(f"{self.name}: a value needs a judge, and a judge gives a value")
        if self.status == "measured" and self.judged != self.of:
            raise ValueError(f"{self.name}: {self.judged} of {self.of} are not all")


def judged_metric(
    name: str, value: float, judged: int, of: int, judge: str, parts: Mapping[str, float]
) -> Metric:
    """Return a metric by how much of the benchmark was judged."""
    if not judged:
        return not_judged(name, of, judge)
    status: Status = "measured" if judged == of else "incomplete"
    return Metric(name, status, value, judged, of, judge, dict(parts))


def not_judged(name: str, of: int, judge: str = "") -> Metric:
    """Return a metric without a value."""
    return Metric(name, "not judged", None, 0, of, judge)


@dataclass(frozen=True)
class Result:
    """What one command found."""

    benchmark: str
    metrics: tuple[Metric, ...]
    conditions: Mapping[str, Any]
    """Checkpoint, settings, scorer: what a number cannot be compared without."""


def write_result(folder: Path, result: Result) -> None:
    """Write the file of a folder."""
    text = json.dumps(dataclasses.asdict(result), indent=2, ensure_ascii=False)
    write_text(folder / RESULT_FILE, text + "\n")


def read_result(folder: Path) -> Result:
    """Read what ``write_result`` wrote.

    Raises:
        ValueError: the file is missing, damaged, or says what cannot be.
    """
    path = folder / RESULT_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {RESULT_FILE}; give a folder of tools/evaluate.py")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        metrics = tuple(Metric(**metric) for metric in document["metrics"])
        return Result(document["benchmark"], metrics, document["conditions"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
