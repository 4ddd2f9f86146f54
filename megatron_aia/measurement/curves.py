"""Measured intensities by sample, the files that keep them, and their mean curves."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_aia.aia.roles import AIA_TASK_OF_NAME, Task

INTENSITY_FILE = "intensity.jsonl"
_LARGEST_INTENSITY = 1 + 1e-3
"""Sums of low-precision shares may exceed 1 by a rounding."""


@dataclass(frozen=True)
class SampleIntensity:
    """The intensity of one sample in every layer (Eq. 1); a line of ``intensity.jsonl``."""

    model: str
    config_hash: str
    """Of the model's configuration: two models of one name are told apart."""
    task: str
    """``generation`` or ``understanding``."""
    sample: str
    """Name of the sample in its data."""
    intensity: tuple[float | None, ...]
    """Of each decoder layer, in 0..1; None where a layer does not attend."""
    queries: int
    """Tokens whose attention is measured."""
    keys: int
    """Tokens that the intensity is the share of."""
    tokens: int
    """Of the whole sample."""
    images: int
    """Pictures in it."""

    def to_json(self) -> str:
        """Return the line."""
        return json.dumps(asdict(self), allow_nan=False)


@dataclass(frozen=True)
class Curve:
    """The mean intensity of a task by layer."""

    model: str
    task: Task
    mean: np.ndarray
    """Float64 ``[layers]``; NaN where no layer was measured."""
    std: np.ndarray
    """Standard deviation over samples (n - 1), ``[layers]``; NaN where it is not known."""
    samples: int
    """0 where it is not known."""
    source: str
    """The file."""

    @property
    def standard_error(self) -> float:
        """The largest of all layers, of the mean; NaN where it is not known."""
        known = self.std[np.isfinite(self.std)]
        return float(known.max() / math.sqrt(self.samples)) if len(known) else math.nan


def relative_depth(num_layers: int) -> np.ndarray:
    """Return l / (L - 1) of each layer l: 0 is the first, 1 the last."""
    return np.linspace(0, 1, num_layers) if num_layers > 1 else np.zeros(1)


def read_curves(path: Path) -> list[Curve]:
    """Read a curve for each task of an ``intensity.jsonl``, a folder that holds it, or a CSV.

    Raises:
        ValueError: the file is missing or empty, a line is wrong, or holds another model; the
            message names file and line.
    """
    path = path / INTENSITY_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give an {INTENSITY_FILE}, its folder, or a CSV")
    if path.suffix == ".csv":
        return _curves_of_csv(path)
    return curves_of(read_samples(path), path)


def curves_of(samples: Sequence[SampleIntensity], path: Path) -> list[Curve]:
    """Return the mean curve of each task among samples of one model."""
    tasks = [
        task for name, task in AIA_TASK_OF_NAME.items() if any(s.task == name for s in samples)
    ]
    return [mean_curve([s for s in samples if AIA_TASK_OF_NAME[s.task] == t], path) for t in tasks]


def mean_curve(samples: Sequence[SampleIntensity], source: Path) -> Curve:
    """Average samples of one task and one model; each sample counts the same."""
    values = np.array([[np.nan if x is None else x for x in s.intensity] for s in samples])
    std = values.std(0, ddof=1) if len(samples) > 1 else np.full(values.shape[1], np.nan)
    task = AIA_TASK_OF_NAME[samples[0].task]
    return Curve(samples[0].model, task, values.mean(0), std, len(samples), str(source))


def read_samples(path: Path) -> list[SampleIntensity]:
    """Read an ``intensity.jsonl`` of one model.

    Raises:
        ValueError: as :func:`read_curves`.
    """
    samples: list[SampleIntensity] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            samples.append(_sample(json.loads(line)))
            _check_same_model(samples[0], samples[-1])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not samples:
        raise ValueError(f"{path} holds no sample")
    return samples


def _sample(values: dict[str, Any]) -> SampleIntensity:
    sample = SampleIntensity(**{**values, "intensity": tuple(values.get("intensity", ()))})
    if sample.task not in AIA_TASK_OF_NAME:
        raise ValueError(f"task is {sample.task!r}; use {' or '.join(AIA_TASK_OF_NAME)}")
    check_intensity(sample.intensity)
    return sample


def check_intensity(intensity: Sequence[float | None]) -> None:
    """Refuse what no softmax gives.

    Raises:
        ValueError: no layer is measured, or a value lies outside of 0..1.
    """
    if all(value is None for value in intensity):
        raise ValueError("intensity holds no measured layer")
    for layer, value in enumerate(intensity):
        if value is not None and not 0 <= value <= _LARGEST_INTENSITY:
            raise ValueError(
                f"intensity of layer {layer} is {value}; a share of attention lies between 0 and "
                "1 (a model in fp16 may have overflowed: measure it in bf16 or fp32)"
            )


def _check_same_model(first: SampleIntensity, other: SampleIntensity) -> None:
    if (first.model, first.config_hash) != (other.model, other.config_hash):
        raise ValueError(
            f"is of model {other.model} ({other.config_hash}), the first line of {first.model} "
            f"({first.config_hash}); keep a file for each model"
        )
    if [x is None for x in first.intensity] != [x is None for x in other.intensity]:
        raise ValueError("has other measured layers than the first line")


def _curves_of_csv(path: Path) -> list[Curve]:
    """Read columns ``layer``, a task's name, and ``<task>_std`` where it is known."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        columns = list(reader.fieldnames or ())
    known = {"layer", *AIA_TASK_OF_NAME, *(f"{name}_std" for name in AIA_TASK_OF_NAME)}
    tasks = [name for name in AIA_TASK_OF_NAME if name in columns]
    if set(columns) - known or "layer" not in columns or not tasks or not rows:
        raise ValueError(
            f"{path} has columns {', '.join(columns) or 'none'}, {len(rows)} rows; give layer, "
            "generation or understanding or both, and generation_std, understanding_std if known"
        )
    layers = _column(path, rows, "layer")
    if layers.tolist() != list(range(len(rows))):
        raise ValueError(f"{path}: column layer must count 0, 1, 2, ...")
    curves = []
    for name in tasks:
        mean = _column(path, rows, name)
        check_intensity(tuple(None if math.isnan(value) else value for value in mean))
        has_std = f"{name}_std" in columns
        std = _column(path, rows, f"{name}_std") if has_std else np.full(len(rows), np.nan)
        curves.append(Curve(path.stem, AIA_TASK_OF_NAME[name], mean, std, 0, str(path)))
    return curves


def _column(path: Path, rows: Iterable[dict[str, Any]], name: str) -> np.ndarray:
    """Read a column; an empty cell is a layer that was not measured."""
    values = []
    for number, row in enumerate(rows, start=2):
        text = row[name] or ""
        try:
            value = float(text) if text else 0.0
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{path}, line {number}: {name} is {text!r}; give a number")
        values.append(value if text else math.nan)
    return np.array(values)
