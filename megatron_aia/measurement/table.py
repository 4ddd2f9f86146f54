"""Measured models side by side: what Table 1 of the paper gives, in text or Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.analysis.records import task_name
from megatron_aia.measurement.curves import (
    INTENSITY_FILE,
    Curve,
    SampleIntensity,
    curves_of,
    read_curves,
    read_samples,
)

_HEAD = (
    *("model", "task", "samples", "mean", "sd by layer", "sd of means", "sd of all"),
    *("standard error", "r of tasks"),
)


@dataclass(frozen=True)
class MeasuredModel:
    """A model, or a checkpoint of one, with what was measured on it."""

    name: str
    curves: tuple[Curve, ...]
    """Of one task or both."""
    samples: tuple[SampleIntensity, ...]
    """Empty for a curve from a CSV."""

    def values(self, task: Task) -> np.ndarray:
        """Return the intensities of a task, ``[samples, measured layers]``."""
        rows = [s.intensity for s in self.samples if s.task == task_name(task)]
        values = np.array([[np.nan if value is None else value for value in row] for row in rows])
        return values[:, ~np.isnan(values).any(0)] if rows else np.empty((0, 0))


@dataclass(frozen=True)
class Spread:
    """Standard deviations (n - 1) over samples. The paper does not say which of them it gives."""

    by_layer: float
    """Mean over layers of the deviation of each layer."""
    of_means: float
    """Of the samples' means over layers."""
    of_all: float
    """Of all values of all samples and layers."""


def read_measured(text: str) -> MeasuredModel:
    """Read ``NAME=PATH`` or ``PATH``: an intensity.jsonl, its folder, or a CSV.

    Raises:
        ValueError: as :func:`~megatron_aia.measurement.curves.read_curves`.
    """
    name, equals, place = text.partition("=")
    path = Path(place if equals else text)
    path = path / INTENSITY_FILE if path.is_dir() else path
    is_curve = path.suffix == ".csv" or not path.is_file()
    samples = () if is_curve else tuple(read_samples(path))
    curves = tuple(curves_of(samples, path) if samples else read_curves(path))
    return MeasuredModel(name if equals else curves[0].model, curves, samples)


def check_model_names(models: Sequence[MeasuredModel]) -> None:
    """Refuse two models of one name, and names that no file can have.

    Raises:
        ValueError: naming them.
    """
    names = [model.name for model in models]
    for model in models:
        if "/" in model.name:
            raise ValueError(f"{model.name}: files are named after it; write NAME=PATH without /")
        if names.count(model.name) > 1:
            sources = [other.curves[0].source for other in models if other.name == model.name]
            raise ValueError(
                f"{' and '.join(sources)} are both of {model.name}; write NAME=PATH for each"
            )


def spread_of(values: np.ndarray) -> Spread:
    """Return the three deviations of ``values [samples, layers]``; NaN for a single sample."""
    if len(values) < 2:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(
        by_layer=float(values.std(0, ddof=1).mean()),
        of_means=float(values.mean(1).std(ddof=1)),
        of_all=float(values.std(ddof=1)),
    )


def correlation(model: MeasuredModel) -> float:
    """Return Pearson's r of the tasks' mean curves; NaN if one is missing or flat."""
    by_task = {curve.task: curve.mean for curve in model.curves}
    if set(by_task) != set(AIA_TASKS):
        return math.nan
    pairs = np.stack([by_task[task] for task in AIA_TASKS])
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    if (pairs.std(1) == 0).any():
        return math.nan
    return float(np.corrcoef(pairs)[0, 1])


def intensity_table(models: Sequence[MeasuredModel], markdown: bool = False) -> str:
    """Return a line a model and task; what is not known is ``-``."""
    rows = [_HEAD, *(_row(model, curve) for model in models for curve in model.curves)]
    if markdown:
        rule = "|" + "---|" * len(_HEAD)
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], rule, *lines[1:]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    padded = ("  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in padded)


def _row(model: MeasuredModel, curve: Curve) -> tuple[str, ...]:
    spread = spread_of(model.values(curve.task))
    numbers = (
        *(float(np.nanmean(curve.mean)), spread.by_layer, spread.of_means, spread.of_all),
        *(curve.standard_error, correlation(model)),
    )
    shown = ("-" if math.isnan(number) else f"{number:.3f}" for number in numbers)
    return (model.name, task_name(curve.task), str(curve.samples or "-"), *shown)
