"""Figures of a run's data: lengths of samples, and padding of sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.analysis.plots import TASK_COLORS, new_figure, style
from megatron_aia.analysis.records import task_name
from megatron_aia.data.batch import MicroBatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 40


@dataclass(frozen=True)
class StepUse:
    """What the samples of one step take of its sequences."""

    lengths: tuple[int, ...]
    """Tokens of each sample."""
    tasks: tuple[Task, ...]
    num_positions: int
    """Positions of all sequences."""

    @property
    def padding(self) -> float:
        """Share of the positions that hold no token, in 0..1."""
        return 1 - sum(self.lengths) / self.num_positions


def measure_step(micro_batches: Sequence[MicroBatch]) -> StepUse:
    """Count the tokens of a step of a run on one data-parallel rank."""
    segments = [segment for batch in micro_batches for segment in batch.segments]
    return StepUse(
        lengths=tuple(segment.stop - segment.start for segment in segments),
        tasks=tuple(Task(task) for batch in micro_batches for task in batch.tasks),
        num_positions=sum(batch.tokens.numel() for batch in micro_batches),
    )


def plot_data(steps: Sequence[StepUse], seq_length: int) -> "Figure":
    """Draw histograms: tokens of a sample by task, and padding of a step.

    Args:
        steps: at least one.
        seq_length: tokens of a sequence, drawn as a line.
    """
    figure = new_figure(9.0, 4.0)
    lengths_axes, padding_axes = figure.subplots(1, 2)
    pairs = [pair for step in steps for pair in zip(step.lengths, step.tasks, strict=True)]
    by_task = {task: [length for length, of in pairs if of == task] for task in Task}
    used = [task for task in Task if by_task[task]]
    lengths_axes.hist(
        [by_task[task] for task in used],
        bins=np.linspace(0, max([seq_length, *(length for length, _ in pairs)]), _BINS + 1),
        stacked=True,
        color=[TASK_COLORS[task] for task in used],
        label=[f"{task_name(task)} ({len(by_task[task])})" for task in used],
    )
    lengths_axes.axvline(seq_length, color="black", linestyle="--", label="sequence")
    lengths_axes.set_xlabel("tokens of a sample")
    lengths_axes.set_ylabel("samples")
    lengths_axes.legend(frameon=False)
    padding = [100 * step.padding for step in steps]
    padding_axes.hist(padding, bins=np.linspace(0, 100, _BINS + 1), color="#8C8C8C")
    padding_axes.set_xlabel("padding of a step (% of the positions of its sequences)")
    padding_axes.set_ylabel("steps")
    for axes in (lengths_axes, padding_axes):
        style(axes)
    total = sum(step.num_positions for step in steps)
    share = 1 - sum(length for length, _ in pairs) / total
    figure.suptitle(f"{len(pairs)} samples in {len(steps)} steps, {share:.1%} padding")
    return figure
