"""From mean curves to a target profile (Table 2): stages, targets and Huber thresholds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_aia.aia.profile import Profile, Stage
from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.measurement.curves import Curve, relative_depth
from megatron_aia.measurement.stages import (
    MAX_AUTO_STAGES,
    Penalty,
    StageFit,
    best_fit,
    fit_stages,
    stage_score,
)

SMALLEST_DELTA = 0.05
LARGEST_DELTA = 0.2


@dataclass(frozen=True)
class FitSettings:
    """How stages are fitted."""

    stages: int | None
    """None: by the score of :func:`~megatron_aia.measurement.stages.stage_score`, at most 8."""
    joint: bool = True
    """One partition of the layers for both tasks, as in Table 2; else one for each."""
    penalty: Penalty = "l2"
    grain: float = 0.01
    """Targets are rounded to its multiples."""
    deltas: tuple[float, ...] = ()
    """Thresholds of the stages, one for all of them or one for each; () derives them."""


@dataclass(frozen=True)
class FittedProfile:
    """A profile, and what it was chosen from."""

    profile: Profile
    notes: tuple[str, ...]
    """Lines that tell how it was made; the first is its source."""
    warnings: tuple[str, ...]


def fit_profile(
    name: str, curves: Sequence[Curve], settings: FitSettings, base: Profile | None = None
) -> FittedProfile:
    """Fit a profile to one curve of each task.

    A curve of another depth than the first is mapped onto its layers by linear interpolation over
    relative depth; so are layers that were not measured.

    Args:
        name: of the profile.
        curves: one or two, of different tasks.
        settings: how stages are fitted.
        base: profile whose stages a task without a curve takes.

    Raises:
        ValueError: a task is there twice, or neither measured nor in ``base``; more stages than
            measured layers; thresholds that do not match the stages.
    """
    _check_tasks(curves, base)
    depth = len(curves[0].mean)
    groups = [curves] if settings.joint else [[curve] for curve in curves]
    stages: dict[Task, tuple[Stage, ...]] = {}
    notes = [_source(curves, depth, base)]
    warnings = []
    for group in groups:
        lines, found = _fit_group(group, depth, settings)
        stages.update(found)
        notes += lines
        most = max(len(of_task) for of_task in found.values())
        if settings.stages is None and most == MAX_AUTO_STAGES:
            warnings.append(
                f"{_tasks(group)}: the curve ran into {most} stages, so it may have none; "
                "--aia-targets layer trains to the curve itself"
            )
    warnings += _warn_of_noise(curves)
    measured = {curve.task: _at_depth(curve.mean, depth) for curve in curves}
    if base is not None:
        for task in AIA_TASKS:
            if task not in stages:
                stages[task] = _stages_of_base(base, task, depth)
    ordered = {task: stages[task] for task in AIA_TASKS}
    profile = Profile(
        name, depth, notes[0], ordered, {t: c.clip(0, 1) for t, c in measured.items()}
    )
    return FittedProfile(profile, tuple(notes), tuple(warnings))


def _check_tasks(curves: Sequence[Curve], base: Profile | None) -> None:
    by_task: dict[Task, Curve] = {}
    for curve in curves:
        if curve.task in by_task:
            raise ValueError(
                f"{_tasks([curve])} is in {by_task[curve.task].source} and in {curve.source}; "
                "give one curve of each task"
            )
        by_task[curve.task] = curve
    missing = [task.name.lower() for task in AIA_TASKS if task not in by_task]
    if not curves:
        raise ValueError("there is no curve; give --intensity")
    if missing and base is None:
        raise ValueError(
            f"{missing[0]} is missing: add its file to --intensity, or take its stages from "
            "--base-profile paper"
        )
    if not missing and base is not None:
        raise ValueError("--base-profile: both tasks are measured, so nothing is taken from it")


def _fit_group(
    curves: Sequence[Curve], depth: int, settings: FitSettings
) -> tuple[list[str], dict[Task, tuple[Stage, ...]]]:
    """Fit one partition to some curves, over the layers that all of them measured."""
    means = np.stack([_at_depth(curve.mean, depth) for curve in curves])
    # Of a curve of another depth every value is interpolated.
    own = [curve.mean for curve in curves if len(curve.mean) == depth]
    measured = np.flatnonzero(np.isfinite([np.zeros(depth), *own]).all(0))
    values = means[:, measured]
    most = settings.stages or min(MAX_AUTO_STAGES, len(measured))
    fits = fit_stages(values, most, settings.penalty)
    fit = fits[-1] if settings.stages else best_fit(fits, values.size)
    if len(settings.deltas) not in (0, 1, fit.num_stages):
        raise ValueError(
            f"--delta has {len(settings.deltas)} values for {fit.num_stages} stages; give one, "
            "or one for each stage"
        )
    # A layer without attention belongs to the stage of the layer before it.
    starts = [0, *(int(measured[start]) for start in fit.starts[1:])]
    stages = {}
    for curve, mean, levels in zip(curves, values, fit.levels, strict=True):
        deltas = list(settings.deltas) * (fit.num_stages if len(settings.deltas) == 1 else 1)
        deltas = deltas or _deltas(mean, _at_depth(curve.std, depth)[measured], fit, levels)
        targets = _round_to(levels.clip(0, 1), settings.grain)
        lasts = [start - 1 for start in starts[1:]] + [depth - 1]
        stages[curve.task] = tuple(map(Stage, starts, lasts, targets, deltas))
    return _describe(curves, fits, fit, values.size, settings), stages


def _deltas(mean: np.ndarray, std: np.ndarray, fit: StageFit, levels: np.ndarray) -> list[float]:
    """Derive thresholds: the natural spread of a stage shall lie in Huber's quadratic zone.

    The larger of the stage's largest distance from its level and of its samples' mean standard
    deviation, between 0.05 and 0.2, rounded up to 0.05.
    """
    deltas = []
    for first, stop, level in zip(fit.starts, [*fit.starts[1:], len(mean)], levels, strict=True):
        spread = float(np.abs(mean[first:stop] - level).max())
        if np.isfinite(std[first:stop]).all():
            spread = max(spread, float(std[first:stop].mean()))
        clipped = min(max(spread, SMALLEST_DELTA), LARGEST_DELTA)
        deltas.append(round(math.ceil(clipped / SMALLEST_DELTA - 1e-9) * SMALLEST_DELTA, 2))
    return deltas


def _round_to(levels: np.ndarray, grain: float) -> list[float]:
    return [round(round(float(level) / grain) * grain, 6) for level in levels]


def _at_depth(values: np.ndarray, depth: int) -> np.ndarray:
    """Map a curve onto ``depth`` layers; layers without a value lie between their neighbours."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return np.full(depth, np.nan)
    places = relative_depth(len(values))
    return np.interp(relative_depth(depth), places[known], values[known])


def _stages_of_base(base: Profile, task: Task, depth: int) -> tuple[Stage, ...]:
    """The stages of another profile, mapped onto ``depth`` layers."""
    targets = base.resolve(depth)
    pairs = list(zip(targets.target[task].tolist(), targets.delta[task].tolist(), strict=True))
    starts = [layer for layer in range(depth) if layer == 0 or pairs[layer] != pairs[layer - 1]]
    stops = [*starts[1:], depth]
    return tuple(Stage(a, b - 1, *pairs[a]) for a, b in zip(starts, stops, strict=True))


def _source(curves: Sequence[Curve], depth: int, base: Profile | None) -> str:
    parts = []
    for curve in curves:
        count = f", {curve.samples} samples" if curve.samples else ""
        part = f"{_tasks([curve])} measured on {curve.model}{count}"
        if len(curve.mean) != depth:
            part += f", {len(curve.mean)} layers interpolated to {depth} by relative depth"
        if np.isnan(curve.mean).any():
            absent = int(np.isnan(curve.mean).sum())
            part += f", {absent} layers without attention interpolated"
        parts.append(part)
    measured = {curve.task for curve in curves}
    if base is not None:
        parts += [
            f"{task.name.lower()} from profile {base.name}"
            for task in AIA_TASKS
            if task not in measured
        ]
    return "; ".join(parts)


def _describe(
    curves: Sequence[Curve],
    fits: Sequence[StageFit],
    chosen: StageFit,
    num_values: int,
    settings: FitSettings,
) -> list[str]:
    rule = "as asked" if settings.stages else "of the least n log(cost / n) + 3 K log n"
    table = [f"{fit.num_stages}: {fit.cost:.6f} {stage_score(fit, num_values):.2f}" for fit in fits]
    rms = math.sqrt(chosen.cost / num_values)
    return [
        f"{_tasks(curves)}: {chosen.num_stages} stages {rule}, penalty {settings.penalty}, rms "
        f"distance {rms:.4f}",
        f"stages: cost, score: {'; '.join(table)}",
    ]


def _warn_of_noise(curves: Sequence[Curve]) -> list[str]:
    warnings = []
    for curve in curves:
        if 0 < curve.samples < 10:
            warnings.append(f"{curve.source}: {_tasks([curve])} has {curve.samples} samples only")
        if curve.standard_error > 0.01:
            warnings.append(
                f"{curve.source}: the standard error of {_tasks([curve])} is "
                f"{curve.standard_error:.3f}; above 0.01 the limits of stages are uncertain: "
                "measure more samples"
            )
    return warnings


def _tasks(curves: Sequence[Curve]) -> str:
    return " and ".join(curve.task.name.lower() for curve in curves)
