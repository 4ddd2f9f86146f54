"""What is summed between two log steps, and the one reduction that turns it into a record."""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import NUM_TASKS, Task
from megatron_aia.aia.tracker import IntensityTracker
from megatron_aia.analysis.records import AIA_TERM, LogRecord
from megatron_aia.models.losses import LossTerm
from megatron_aia.runtime.device import device
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.runtime.timers import StepTimers
from megatron_aia.training.instruments import measure_ranks
from megatron_aia.training.step import StepOutput


class IntervalMetrics:
    """Sums of this rank over the steps since the last record.

    Args:
        num_layers: decoder layers of the whole model.
        terms: of the loss.
        targets: of the AIA term; None if it is off.
        parallel: of the run.
        timers: whose spans have the names of ``PHASES``.
        peak: FLOP/s of a device at most; None if unknown.
    """

    def __init__(
        self,
        num_layers: int,
        terms: Sequence[LossTerm],
        targets: LayerTargets | None,
        parallel: Parallel,
        timers: StepTimers,
        peak: float | None = None,
    ) -> None:
        self._timers = timers
        self._peak = peak
        self._terms = terms
        self._targets = targets
        self._parallel = parallel
        self._tracker = IntensityTracker(num_layers)
        self._clear()

    def add(self, output: StepOutput, updated: bool, grad_norm: float) -> None:
        """Add one step. A step without an update counts as skipped; its losses may be NaN."""
        self._steps += 1
        self._tokens += output.counts.tokens
        self._positions += output.counts.positions
        self._flops += output.flops[0]
        self._aia_flops += output.flops[1]
        if not updated:
            self._skipped += 1
            return
        self._losses += output.losses
        for term in self._terms:
            counts = output.counts.of_term[term.name]
            self._weights[term.name] += term.weight_by_task(counts)
        self._grad_norm = grad_norm
        for aia in output.aia_contexts:
            self._tracker.add(aia)

    def record(
        self,
        iteration: int,
        train_iters: int,
        consumed_samples: int,
        total_skipped: int,
        learning_rate: float,
        corrupt_samples: int = 0,
    ) -> LogRecord:
        """Reduce over data- and context-parallel ranks and pipeline stages; start a new interval.

        Every rank calls this; all get the same record but for the time of a step, which is their
        own, and for the corrupt samples, which rank 0 counts.
        """
        parts, losses = self._mean_losses(self._reduce())
        intensities = self._tracker.report()
        if self._targets is not None:
            losses[AIA_TERM] = intensities.loss
            parts[AIA_TERM] = sum(intensities.loss.values())
        measured = measure_ranks(
            self._timers.take(), self._steps, self._flops, self._aia_flops, self._parallel
        )
        seconds = (time.perf_counter() - self._start) / self._steps
        tera_seconds = 1e12 * seconds * dist.get_world_size()
        tflops = measured.flops_a_step / tera_seconds
        record = LogRecord(
            iteration=iteration,
            train_iters=train_iters,
            consumed_samples=consumed_samples,
            seconds_per_iteration=seconds,
            tokens_per_second=self._tokens / self._steps / seconds,
            learning_rate=learning_rate,
            grad_norm=self._grad_norm,
            skipped_iterations=self._skipped,
            total_skipped=total_skipped,
            loss=sum(parts.values()),
            terms=parts,
            losses=losses,
            intensity=intensities.intensity if self._targets is not None else {},
            target=self._target_curves(),
            padding_fraction=1 - self._tokens / self._positions,
            corrupt_samples=corrupt_samples,
            phases=measured.phases,
            slowest_rank=measured.slowest_rank,
            rank_spread=measured.rank_spread,
            memory=measured.memory,
            tflops_per_device=tflops,
            aia_tflops_per_device=measured.aia_flops_a_step / tera_seconds,
            mfu=tflops * 1e12 / self._peak if self._peak else math.nan,
        )
        self._clear()
        return record

    def _mean_losses(
        self, sums: torch.Tensor
    ) -> tuple[dict[str, float], dict[str, dict[Task, float]]]:
        """Return each term's part of the loss, a mean over steps, and its mean value by task."""
        updates = self._steps - self._skipped
        parts, losses = {}, {}
        for term, (part, *by_task) in zip(self._terms, sums.tolist(), strict=True):
            weight = self._weights[term.name].tolist()
            parts[term.name] = part / updates if updates else math.nan
            losses[term.name] = {
                Task(i): by_task[i] / weight[i] for i in range(NUM_TASKS) if weight[i] > 0
            }
        return parts, losses

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

    def _target_curves(self) -> dict[Task, np.ndarray]:
        return {} if self._targets is None else dict(self._targets.target)

    def _clear(self) -> None:
        self._tracker.clear()
        shape = (len(self._terms), 1 + NUM_TASKS)
        self._losses = torch.zeros(shape, dtype=torch.float64, device=device())
        self._weights = {
            term.name: torch.zeros(NUM_TASKS, dtype=torch.float64) for term in self._terms
        }
        self._steps = self._skipped = self._tokens = self._positions = 0
        self._flops, self._aia_flops = 0.0, 0.0
        self._grad_norm = math.nan
        self._start = time.perf_counter()
