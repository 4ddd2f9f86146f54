"""Losses and intensities summed over steps, and the one reduction over ranks that makes means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_aia.aia.roles import NUM_TASKS, Task
from megatron_aia.aia.tracker import IntensityReport, IntensityTracker
from megatron_aia.analysis.records import AIA_TERM
from megatron_aia.models.losses import LossTerm
from megatron_aia.runtime.device import device
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.training.step import StepOutput


@dataclass(frozen=True)
class MeanLosses:
    """What the sums of all ranks say."""

    terms: dict[str, float]
    """By loss term, AIA's too: its part of the objective, a mean over steps."""
    losses: dict[str, dict[Task, float]]
    """By loss term and task: the mean of its values over their weights."""
    intensities: IntensityReport


class LossSums:
    """Sums of this rank.

    Args:
        num_layers: decoder layers of the whole model.
        terms: of the loss.
        has_aia: the AIA term is on.
        parallel: of the run.
    """

    def __init__(
        self, num_layers: int, terms: Sequence[LossTerm], has_aia: bool, parallel: Parallel
    ) -> None:
        self._terms, self._has_aia, self._parallel = terms, has_aia, parallel
        self._tracker = IntensityTracker(num_layers)
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._tracker.clear()
        shape = (len(self._terms), 1 + NUM_TASKS)
        self._losses = torch.zeros(shape, dtype=torch.float64, device=device())
        self._weights = {
            term.name: torch.zeros(NUM_TASKS, dtype=torch.float64) for term in self._terms
        }

    def add(self, output: StepOutput) -> None:
        """Add a step, with the weights of its global batch."""
        self.add_part(output)
        for term in self._terms:
            counts = output.counts.of_term[term.name]
            self._weights[term.name] += term.weight_by_task(counts)

    def add_part(self, output: StepOutput) -> None:
        """Add a part of a step, without weights: one of the parts is to be added whole."""
        self._losses += output.losses
        for aia in output.aia_contexts:
            self._tracker.add(aia)

    def mean(self, steps: int) -> MeanLosses:
        """Reduce over data- and context-parallel ranks and pipeline stages; every rank calls this.

        Args:
            steps: that were added.
        """
        sums = self._reduce().tolist()
        parts, losses = {}, {}
        for term, (part, *by_task) in zip(self._terms, sums, strict=True):
            weight = self._weights[term.name].tolist()
            parts[term.name] = part / steps if steps else math.nan
            losses[term.name] = {
                Task(i): by_task[i] / weight[i] for i in range(NUM_TASKS) if weight[i] > 0
            }
        intensities = self._tracker.report()
        if self._has_aia:
            losses[AIA_TERM] = intensities.loss
            parts[AIA_TERM] = sum(intensities.loss.values())
        return MeanLosses(parts, losses, intensities)

    def _reduce(self) -> torch.Tensor:
        """Return the sums of the loss terms over all ranks; the tracker gets the intensities'."""
        tracked = self._tracker.totals().to(device())
        if self._parallel.context_rank > 0:
            # Sums of losses are parts, but every context-parallel rank has the whole intensities.
            tracked.zero_()
        sums = torch.cat([self._losses.flatten(), tracked])
        for group in (self._parallel.groups.dp_cp, self._parallel.groups.pp):
            dist.all_reduce(sums, group=group)
        losses, tracked = sums.split([self._losses.numel(), len(tracked)])
        self._tracker.load_totals(tracked)
        return losses.view_as(self._losses)
