"""What is summed between two log steps, and the one reduction that turns it into a record."""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch.distributed as dist

from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import Task
from megatron_aia.analysis.records import LogRecord
from megatron_aia.models.losses import LossTerm
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.runtime.timers import StepTimers
from megatron_aia.training.instruments import measure_ranks
from megatron_aia.training.loss_sums import LossSums
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
        self._targets = targets
        self._parallel = parallel
        self._sums = LossSums(num_layers, terms, targets is not None, parallel)
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
        self._sums.add(output)
        self._grad_norm = grad_norm

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
        means = self._sums.mean(self._steps - self._skipped)
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
            loss=sum(means.terms.values()),
            terms=means.terms,
            losses=means.losses,
            intensity=means.intensities.intensity if self._targets is not None else {},
            intensity_std=means.intensities.std if self._targets is not None else {},
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

    def _target_curves(self) -> dict[Task, np.ndarray]:
        return {} if self._targets is None else dict(self._targets.target)

    def _clear(self) -> None:
        self._sums.clear()
        self._steps = self._skipped = self._tokens = self._positions = 0
        self._flops, self._aia_flops = 0.0, 0.0
        self._grad_norm = math.nan
        self._start = time.perf_counter()
