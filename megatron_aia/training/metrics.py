"""What is summed between two log steps, and the one reduction that turns it into a record."""

import math
import time

import numpy as np
import torch
import torch.distributed as dist

from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import NUM_TASKS, Task
from megatron_aia.aia.tracker import IntensityTracker
from megatron_aia.analysis.records import LogRecord
from megatron_aia.runtime.device import device
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.training.step import StepOutput


class IntervalMetrics:
    """Sums of this rank over the steps since the last record.

    Args:
        num_layers: decoder layers of the whole model.
        targets: of the AIA term; None if it is off.
        parallel: of the run.
    """

    def __init__(self, num_layers: int, targets: LayerTargets | None, parallel: Parallel) -> None:
        self._targets = targets
        self._parallel = parallel
        self._tracker = IntensityTracker(num_layers)
        self._clear()

    def add(self, output: StepOutput, updated: bool, grad_norm: float) -> None:
        """Add one step. A step without an update counts as skipped; its losses may be NaN."""
        self._steps += 1
        self._tokens += output.counts.tokens
        self._positions += output.counts.positions
        if not updated:
            self._skipped += 1
            return
        self._next_token += output.next_token
        self._label_weight += output.counts.label_weight
        self._grad_norm = grad_norm
        for align in output.aligns:
            self._tracker.add(align)

    def record(
        self,
        iteration: int,
        train_iters: int,
        consumed_samples: int,
        total_skipped: int,
        learning_rate: float,
        damaged_samples: int = 0,
    ) -> LogRecord:
        """Reduce over data- and context-parallel ranks and pipeline stages; start a new interval.

        Every rank calls this; all get the same record but for the timings, which are their own,
        and for the damaged samples, which rank 0 counts.
        """
        next_token = self._reduce()
        updates = max(self._steps - self._skipped, 1)
        ntp_loss = next_token[0] / updates if self._steps > self._skipped else math.nan
        intensities = self._tracker.report()
        aia = intensities.loss if self._targets is not None else {}
        seconds = (time.perf_counter() - self._start) / self._steps
        weight = self._label_weight.tolist()
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
            loss=ntp_loss + sum(aia.values()),
            ntp_loss=ntp_loss,
            ntp_by_task={
                Task(i): next_token[1 + i] / weight[i] for i in range(NUM_TASKS) if weight[i] > 0
            },
            aia_by_task=aia,
            intensity=intensities.intensity if self._targets is not None else {},
            target=self._target_curves(),
            padding_fraction=1 - self._tokens / self._positions,
            damaged_samples=damaged_samples,
        )
        self._clear()
        return record

    def _reduce(self) -> list[float]:
        tracked = self._tracker.totals().to(device())
        if self._parallel.context_rank > 0:
            # Next-token sums are parts, but every context-parallel rank has the whole intensities.
            tracked.zero_()
        sums = torch.cat([self._next_token, tracked])
        for group in (self._parallel.groups.dp_cp, self._parallel.groups.pp):
            dist.all_reduce(sums, group=group)
        next_token, tracked = sums.split([1 + NUM_TASKS, len(tracked)])
        self._tracker.load_totals(tracked)
        return next_token.tolist()

    def _target_curves(self) -> dict[Task, np.ndarray]:
        return {} if self._targets is None else dict(self._targets.target)

    def _clear(self) -> None:
        self._tracker.clear()
        self._next_token = torch.zeros(1 + NUM_TASKS, dtype=torch.float64, device=device())
        self._label_weight = torch.zeros(NUM_TASKS, dtype=torch.float64)
        self._steps = self._skipped = self._tokens = self._positions = 0
        self._grad_norm = math.nan
        self._start = time.perf_counter()
