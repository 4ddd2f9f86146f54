"""Piecewise-constant fit of intensity curves: the exact optimum, and how many stages to take."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

Penalty = Literal["l2", "huber"]

HUBER_THRESHOLD = 0.05
"""Distance from which ``huber`` grows linearly: one wild layer is no stage of its own."""

MAX_AUTO_STAGES = 8
_SCORE_OF_A_STAGE = 3.0
_SMALLEST_RMS = 0.005
"""No curve of sampled data is known better; smaller distances are no evidence for a stage."""


@dataclass(frozen=True)
class StageFit:
    """The best partition of the layers into so many stages, shared by all curves."""

    starts: tuple[int, ...]
    """First index of each stage; the first is 0."""
    levels: np.ndarray
    """Float64 ``[curves, stages]``: what each curve is in each stage."""
    cost: float
    """Sum over curves and layers of the squared distance to the level (``huber``: less)."""

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.starts)


def fit_stages(
    curves: np.ndarray, max_stages: int, penalty: Penalty = "l2"
) -> tuple[StageFit, ...]:
    """Fit 1, 2, ... ``max_stages`` stages; each fit is the optimum, by dynamic programming.

    Minimises ``sum over stages, layers l of the stage and curves t of rho(y[t, l] - c[t, stage])``,
    where rho is the square, or for ``huber`` the square up to :data:`HUBER_THRESHOLD` and linear
    beyond. O(stages layers^2). Among equal costs a stage starts as early as it can.

    Args:
        curves: float64 ``[curves, layers]``, finite.
        max_stages: the most stages, at least 1 and at most the layers.
        penalty: what a distance costs.

    Raises:
        ValueError: a value is not finite, or there are more stages than layers.
    """
    if not np.isfinite(curves).all():
        raise ValueError("a curve holds values that are not finite; give the measured layers only")
    num_layers = curves.shape[1]
    if not 1 <= max_stages <= num_layers:
        raise ValueError(f"{max_stages} stages: give 1 to {num_layers}, the measured layers")
    stage_cost = _stage_costs(curves, penalty)
    best = np.full((max_stages + 1, num_layers + 1), np.inf)
    best[0, 0] = 0.0
    start = np.zeros((max_stages + 1, num_layers + 1), np.int64)
    for stages in range(1, max_stages + 1):
        for stop in range(stages, num_layers + 1):
            costs = best[stages - 1, :stop] + stage_cost[:stop, stop]
            start[stages, stop] = costs.argmin()
            best[stages, stop] = costs.min()
    return tuple(
        _trace(curves, start, stages, float(best[stages, num_layers]), penalty)
        for stages in range(1, max_stages + 1)
    )


def stage_score(fit: StageFit, num_values: int) -> float:
    """Return ``n log(cost / n) + 3 K log n`` of K stages fitted to n values; less is better.

    The rms distance ``sqrt(cost / n)`` counts as 0.005 where it is less. The 3 is ours: with the 2
    of the Bayesian information criterion noise of 0.01 is often taken for a stage.
    """
    variance = max(fit.cost / num_values, _SMALLEST_RMS**2)
    return num_values * np.log(variance) + _SCORE_OF_A_STAGE * fit.num_stages * np.log(num_values)


def best_fit(fits: Sequence[StageFit], num_values: int) -> StageFit:
    """Return the fit of the least :func:`stage_score`; of equals, the one of fewer stages."""
    return min(fits, key=lambda fit: (stage_score(fit, num_values), fit.num_stages))


def _trace(
    curves: np.ndarray, start: np.ndarray, stages: int, cost: float, penalty: Penalty
) -> StageFit:
    edges = [curves.shape[1]]
    for stage in range(stages, 0, -1):
        edges.append(int(start[stage, edges[-1]]))
    edges.reverse()
    levels = [
        [_level(curve[first:stop], penalty) for first, stop in pairwise(edges)] for curve in curves
    ]
    return StageFit(tuple(edges[:-1]), np.array(levels), cost)


def _stage_costs(curves: np.ndarray, penalty: Penalty) -> np.ndarray:
    """Cost of a stage of layers [first, stop) at its best level, ``[layers, layers + 1]``."""
    num_layers = curves.shape[1]
    costs = np.full((num_layers, num_layers + 1), np.inf)
    for first in range(num_layers):
        for stop in range(first + 1, num_layers + 1):
            parts = curves[:, first:stop]
            costs[first, stop] = sum(
                _penalties(part - _level(part, penalty), penalty).sum() for part in parts
            )
    return costs


def _penalties(distances: np.ndarray, penalty: Penalty) -> np.ndarray:
    sizes = np.abs(distances)
    if penalty == "l2":
        return sizes**2
    linear = HUBER_THRESHOLD * (2 * sizes - HUBER_THRESHOLD)
    return np.where(sizes <= HUBER_THRESHOLD, sizes**2, linear)


def _level(values: np.ndarray, penalty: Penalty) -> float:
    """Return the level of least cost: the mean, or where the slopes of ``huber`` add up to 0."""
    if penalty == "l2":
        return float(values.mean())
    # The sum of the slopes falls with the level, linearly between these points.
    corners = np.sort(np.concatenate([values - HUBER_THRESHOLD, values + HUBER_THRESHOLD]))
    slopes = np.clip(values[None] - corners[:, None], -HUBER_THRESHOLD, HUBER_THRESHOLD).sum(1)
    return float(np.interp(0.0, -slopes, corners))
