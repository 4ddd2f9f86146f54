"""The folder that a measurement leaves: intensities by sample, and what they add up to."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_aia.measurement.curves import (
    INTENSITY_FILE,
    SampleIntensity,
    check_intensity,
    mean_curve,
)
from megatron_aia.measurement.table import spread_of
from megatron_aia.runtime.atomic import write_text

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Measurement:
    """What was found on one model."""

    samples: tuple[SampleIntensity, ...]
    inactive: Mapping[str, Mapping[str, str]]
    """By task: the samples without intensity, each with its reason."""


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that holds a measurement.

    Raises:
        ValueError: naming it.
    """
    if (folder / INTENSITY_FILE).exists():
        raise ValueError(f"--output {folder} holds a measurement; give another folder")


def check_enough(measurement: Measurement) -> None:
    """Refuse a task most of whose samples have no intensity, and values that no softmax gives.

    Raises:
        ValueError: naming the reasons, or sample and layer.
    """
    for task, left_out in measurement.inactive.items():
        count_reasons(task, left_out, sum(sample.task == task for sample in measurement.samples))
    for sample in measurement.samples:
        try:
            check_intensity(sample.intensity)
        except ValueError as error:
            raise ValueError(f"sample {sample.sample}: {error}") from error


def count_reasons(task: str, left_out: Mapping[str, str], active: int) -> dict[str, int]:
    """Count why samples of a task were left out.

    Args:
        task: its name.
        left_out: samples that were, each with its reason.
        active: samples that were not.

    Raises:
        ValueError: there are more of those than of these, or none of either.
    """
    reasons = Counter(left_out.values())
    if not active or reasons.total() > active:
        counted = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise ValueError(f"{task}: {active} of {active + reasons.total()} samples: {counted}")
    return dict(reasons)


def write_measurement(
    folder: Path, measurement: Measurement, conditions: Mapping[str, Any]
) -> dict[str, Any]:
    """Write both files, each whole or not at all, and return the summary.

    Args:
        folder: made if it is not there.
        measurement: with at least one sample of each task.
        conditions: what the numbers depend on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / INTENSITY_FILE
    summary = {
        **conditions,
        "tasks": {
            task: _summary_of(
                [sample for sample in measurement.samples if sample.task == task], left_out, path
            )
            for task, left_out in measurement.inactive.items()
        },
    }
    write_text(folder / SUMMARY_FILE, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    write_text(path, "".join(sample.to_json() + "\n" for sample in measurement.samples))
    return summary


def _summary_of(
    samples: Sequence[SampleIntensity], left_out: Mapping[str, str], path: Path
) -> dict[str, Any]:
    curve = mean_curve(samples, path)
    values = np.array([[v for v in sample.intensity if v is not None] for sample in samples])
    spread = spread_of(values)
    return {
        "samples": len(samples),
        "inactive": dict(Counter(left_out.values())),
        "inactive_samples": dict(left_out),
        "mean": _numbers(curve.mean),
        "std": _numbers(curve.std),
        "std_by_layer": _number(spread.by_layer),
        "std_of_means": _number(spread.of_means),
        "std_of_all": _number(spread.of_all),
        "largest_standard_error": _number(curve.standard_error),
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
