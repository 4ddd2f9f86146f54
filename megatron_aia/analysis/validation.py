"""What a validation reports, and the file that keeps it: one JSON line a validation."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.analysis.records import JsonRecord, read_lines

VALIDATION_FILE = "validation.jsonl"


@dataclass(frozen=True, eq=False)
class ValidationRecord(JsonRecord):
    """Losses and intensities on the validation data; the fields are those of ``LogRecord``."""

    iteration: int
    """Steps done before."""
    samples: int
    """That were read."""
    loss: float
    """The objective over all of them as one batch: the sum of ``terms``."""
    terms: dict[str, float]
    """By loss term: its part of the objective."""
    losses: dict[str, dict[Task, float]]
    """By loss term and task: the mean of the term's values over their weights."""
    intensity: dict[Task, np.ndarray]
    """Mean intensity over the active samples, ``[L]`` in 0..1."""


def read_validations(folder: Path) -> list[ValidationRecord]:
    """Return the validations of a run in ascending order of iteration.

    Raises:
        ValueError: the file is missing, empty or holds something else.
    """
    return read_lines(folder / VALIDATION_FILE, ValidationRecord, "validated")
