"""Figures of measured intensities: curves of models, samples by layer, layers while training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from megatron_aia.aia.profile import Profile
from megatron_aia.aia.roles import AIA_TASK_OF_NAME, AIA_TASKS, Task
from megatron_aia.analysis.plots import TASK_COLORS, new_figure, style
from megatron_aia.analysis.records import LogRecord, task_name
from megatron_aia.measurement.curves import relative_depth
from megatron_aia.measurement.table import MeasuredModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = {Task.GENERATION: "-", Task.UNDERSTANDING: "--"}
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_FEW_SAMPLES = 20


def plot_models(
    models: Sequence[MeasuredModel], by_layer: bool = False, profile: Optional[Profile] = None
) -> "Figure":
    """Draw a panel a model with the curves of its tasks, as Fig. 1 does.

    Args:
        models: at least one; the band is one standard deviation over samples.
        by_layer: number the layers, in place of their relative depth.
        profile: targets to draw below the curves.
    """
    figure = new_figure(3.6 * len(models) + 0.6, 3.8)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        for curve in model.curves:
            color, line = TASK_COLORS[curve.task], _LINES[curve.task]
            _draw_target(axes, profile, curve.task, len(curve.mean), by_layer)
            _draw_curve(axes, curve.mean, curve.std, by_layer, color, line, task_name(curve.task))
        axes.set_title(model.name)
        _label(axes, by_layer)
    panels[0].set_ylabel("intensity (share of attention)")
    panels[0].set_ylim(0, 1)
    panels[0].legend(frameon=False)
    return figure


def plot_overlay(
    models: Sequence[MeasuredModel], by_layer: bool = False, profile: Optional[Profile] = None
) -> "Figure":
    """Draw a panel a task with the curves of all models, as Fig. 4 does: before, after, teacher.

    Args:
        models: at least one.
        by_layer: number the layers, in place of their relative depth.
        profile: targets to draw below the curves, at the depth of the first model.
    """
    figure = new_figure(9.0, 4.0)
    panels = figure.subplots(1, len(AIA_TASKS), sharey=True)
    depth = len(models[0].curves[0].mean)
    for axes, task in zip(panels, AIA_TASKS, strict=True):
        _draw_target(axes, profile, task, depth, by_layer)
        for number, model in enumerate(models):
            for curve in model.curves:
                if curve.task == task:
                    color = _COLORS[number % len(_COLORS)]
                    _draw_curve(axes, curve.mean, curve.std, by_layer, color, "-", model.name)
        axes.set_title(task_name(task))
        _label(axes, by_layer)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    panels[0].set_ylabel("intensity (share of attention)")
    panels[0].set_ylim(0, 1)
    return figure


def plot_spread(model: MeasuredModel) -> "Figure":
    """Draw how the samples of a model lie in each layer: boxes, or points of fewer than 20.

    Args:
        model: with samples.
    """
    figure = new_figure(9.0, 3.2 * len(model.curves) + 0.4)
    panels = figure.subplots(len(model.curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, curve in zip(panels, model.curves, strict=True):
        values = model.values(curve.task)
        layers = np.flatnonzero(np.isfinite(curve.mean))
        color = TASK_COLORS[curve.task]
        if len(values) < _FEW_SAMPLES:
            axes.plot(layers, values.T, ".", color=color, markersize=4)
        else:
            axes.boxplot(values, positions=layers, manage_ticks=False, flierprops={"markersize": 2})
        axes.plot(layers, curve.mean[layers], color=color, label="mean")
        axes.set_title(f"{model.name}: {task_name(curve.task)}, {len(values)} samples")
        axes.set_ylabel("intensity")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        style(axes)
    panels[-1].set_xlabel("decoder layer")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_training(records: Sequence[LogRecord]) -> "Figure":
    """Draw layer against iteration, the intensity as colour, and the targets as a strip.

    Args:
        records: of a run, ascending; a task without intensities has an empty panel.
    """
    figure = new_figure(10.0, 4.0)
    panels = figure.subplots(1, 2 * len(AIA_TASKS), width_ratios=(8, 1) * len(AIA_TASKS))
    images = []
    for task, axes, strip in zip(AIA_TASKS, panels[::2], panels[1::2], strict=True):
        measured = [record for record in records if task in record.intensity]
        axes.set_title(task_name(task))
        axes.set_xlabel("iteration")
        axes.set_ylabel("decoder layer")
        strip.set_title("target", fontsize="small")
        strip.set_xticks([])
        strip.set_yticks([])
        if not measured:
            continue
        layers = np.arange(len(measured[0].intensity[task]) + 1) - 0.5
        steps = [record.iteration for record in measured]
        edges = np.array([*(step - 0.5 for step in steps), steps[-1] + 0.5])
        shares = np.array([record.intensity[task] for record in measured]).T
        images.append(axes.pcolormesh(edges, layers, shares, vmin=0, vmax=1))
        target = measured[-1].target.get(task)
        if target is not None:
            strip.pcolormesh([0, 1], layers, target[:, None], vmin=0, vmax=1)
    if images:
        figure.colorbar(images[0], ax=panels, label="intensity")
    return figure


def _draw_curve(
    axes: "Axes",
    mean: np.ndarray,
    std: np.ndarray,
    by_layer: bool,
    color: str,
    line: str,
    label: str,
) -> None:
    places = np.arange(len(mean)) if by_layer else relative_depth(len(mean))
    known = np.isfinite(mean)
    axes.plot(places[known], mean[known], line, color=color, linewidth=1.8, label=label)
    band = known & np.isfinite(std)
    low, high = (mean - std)[band], (mean + std)[band]
    axes.fill_between(places[band], low, high, color=color, alpha=0.15, linewidth=0)


def _draw_target(
    axes: "Axes", profile: Optional[Profile], task: Task, num_layers: int, by_layer: bool
) -> None:
    if profile is None:
        return
    target = profile.resolve(num_layers).target[task]
    places = np.arange(num_layers) if by_layer else relative_depth(num_layers)
    axes.plot(
        places, target, ":", color="black", drawstyle="steps-mid", label=f"target, {profile.name}"
    )


def _label(axes: "Axes", by_layer: bool) -> None:
    axes.set_xlabel("decoder layer" if by_layer else "relative depth, layer / (layers - 1)")
    style(axes)


def plot_alignment(name: str, tasks: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Draw the alignment of image and text by layer, and what chance gives.

    Args:
        name: of the model.
        tasks: by name, ``alignment`` of each layer and ``chance``.
    """
    figure = new_figure(5.0, 3.8)
    axes = figure.subplots()
    for label, found in tasks.items():
        task = AIA_TASK_OF_NAME[label]
        color = TASK_COLORS[task]
        depth = relative_depth(len(found["alignment"]))
        axes.plot(depth, found["alignment"], _LINES[task], color=color, label=label)
        axes.axhline(found["chance"], color=color, linewidth=0.8, linestyle=":")
    axes.set_title(name)
    axes.set_xlabel("relative depth")
    axes.set_ylabel("mutual nearest neighbours (dotted: chance)")
    axes.legend(frameon=False)
    style(axes)
    return figure
