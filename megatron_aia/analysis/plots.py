"""Figures of a run: losses, intensity by layer, and a picture beside its reconstruction.

matplotlib is needed only when a figure is drawn. No function here opens a window or touches
pyplot's list of open figures: the caller saves or shows the figure that it gets.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional, Union

import numpy as np

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.analysis.records import AIA_TERM, LogRecord, task_name
from megatron_aia.runtime.optional import import_optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Okabe and Ito's palette, told apart under every common colour blindness; blue for generation and
# red for understanding as in the paper.
TASK_COLORS = {
    Task.GENERATION: "#0072B2",
    Task.UNDERSTANDING: "#D55E00",
    Task.TEXT: "#009E73",
    Task.MIXED: "#CC79A7",
}
_TASK_LINES = {
    Task.GENERATION: "-",
    Task.UNDERSTANDING: "--",
    Task.TEXT: ":",
    Task.MIXED: "-.",
}
_TERM_LABELS = {
    "ntp": "next-token loss\n(nats per token)",
    AIA_TERM: "weighted AIA term\n(added to the loss)",
}
_MOST_MARKED_POINTS = 50
_BEFORE_COLOR = "#8C8C8C"
_TARGET_COLOR = "#000000"


def plot_losses(records: Sequence[LogRecord]) -> "Figure":
    """Draw each loss term by task against the iteration, one under the other.

    Args:
        records: at least one, in ascending order of iteration.
    """
    iterations = [record.iteration for record in records]
    by_term = {
        term: [record.losses[term] for record in records]
        for term in records[0].losses
        if any(record.losses[term] for record in records)
    }
    figure = new_figure(7.0, 1.6 + 2.0 * max(len(by_term), 1))
    panels = figure.subplots(max(len(by_term), 1), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (term, losses) in zip(panels, by_term.items(), strict=False):
        _draw_losses(panel, iterations, losses)
        panel.set_ylabel(_TERM_LABELS.get(term, f"{term} loss"))
        if term == AIA_TERM:
            panel.set_ylim(bottom=0)
    if by_term:
        _legend_above(panels[0])
    panels[-1].set_xlabel("iteration")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_intensity(
    before: dict[Task, np.ndarray],
    after: dict[Task, np.ndarray],
    target: dict[Task, np.ndarray],
    title: str,
    spread: Optional[dict[Task, np.ndarray]] = None,
) -> "Figure":
    """Draw each task's intensity by layer, before and after training, against its target.

    Args:
        before: intensity ``[L]`` of each decoder layer in 0..1; NaN or no entry is not drawn.
        after: the same, later in the run.
        target: what the profile asks for, ``[L]``.
        title: of the whole figure.
        spread: standard deviation of ``after`` over samples, ``[L]``, drawn as a band.
    """
    figure = new_figure(9.0, 4.0)
    panels = figure.subplots(1, len(AIA_TASKS), sharey=True)
    for axes, task in zip(panels, AIA_TASKS, strict=True):
        if task in target:
            edges = np.arange(len(target[task]) + 1) - 0.5
            axes.stairs(
                target[task],
                edges,
                baseline=None,
                color=_TARGET_COLOR,
                linewidth=1.8,
                label="target profile",
            )
        if task in before:
            _draw_layers(axes, before[task], "before", color=_BEFORE_COLOR, marker="s", ls="--")
        if task in after:
            _draw_layers(axes, after[task], "after", color=TASK_COLORS[task], marker="o", ls="-")
            if spread and task in spread:
                low, high = after[task] - spread[task], after[task] + spread[task]
                layers = np.arange(len(low))
                axes.fill_between(layers, low, high, color=TASK_COLORS[task], alpha=0.15, lw=0)
        axes.set_title(task_name(task), pad=26)
        axes.set_xlabel("decoder layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _legend_above(axes)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("intensity (share of attention)")
    figure.suptitle(title)
    return figure


def plot_reconstruction(
    original: Union["Image", np.ndarray],
    reconstruction: Union["Image", np.ndarray],
    caption: str,
    titles: tuple[str, str] = ("original", "reconstruction"),
) -> "Figure":
    """Show a picture beside what its codes decode to.

    Args:
        original: picture or ``[height, width, 3]`` uint8.
        reconstruction: the same kind; it may have another size.
        caption: how the reconstruction was made, above both.
        titles: above each.
    """
    pictures = [np.asarray(original), np.asarray(reconstruction)]
    figure = new_figure(8.0, 4.8)
    # Constrained layout does not see how far a picture's fixed aspect shrinks its axes.
    figure.set_layout_engine("compressed")
    panels = figure.subplots(1, 2)
    for axes, pixels, title in zip(panels, pictures, titles, strict=True):
        # Each source pixel stays a crisp square: smoothing would flatter the tokeniser.
        axes.imshow(pixels, interpolation="nearest")
        height, width = pixels.shape[:2]
        axes.set_title(title)
        axes.set_xlabel(f"{width} x {height} pixels")
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(caption)
    return figure


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of so many inches."""
    figure_class = import_optional("matplotlib.figure", "demo").Figure
    return figure_class(figsize=(width, height), dpi=150, layout="constrained")


def _draw_losses(
    axes: "Axes", iterations: list[int], values_by_task: list[dict[Task, float]]
) -> None:
    for task in Task:
        losses = [values.get(task, np.nan) for values in values_by_task]
        if not np.isnan(losses).all():
            axes.plot(
                iterations,
                losses,
                color=TASK_COLORS[task],
                linestyle=_TASK_LINES[task],
                linewidth=1.8,
                marker="." if len(iterations) <= _MOST_MARKED_POINTS else "",
                label=task_name(task),
            )
    style(axes)


def _draw_layers(
    axes: "Axes", intensity: np.ndarray, label: str, color: str, marker: str, ls: str
) -> None:
    axes.plot(
        np.arange(len(intensity)),
        intensity,
        color=color,
        marker=marker,
        markersize=4,
        linestyle=ls,
        linewidth=1.4,
        label=label,
    )
    style(axes)


def style(axes: "Axes") -> None:
    """Give axes a light grid and no frame."""
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_above(axes: "Axes") -> None:
    """Put the legend between the axes and their title, where no curve can pass under it."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
