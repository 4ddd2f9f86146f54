"""The micro-batches of a step on every rank, or on none: ranks agree before a step begins."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.prefetch import Prefetcher
from megatron_aia.data.replacements import CorruptSample, CorruptSamplesFound, UnreadableStep
from megatron_aia.runtime.parallel import Parallel, broadcast_failure
from megatron_aia.training.corrupt_list import CorruptList
from megatron_aia.training.saver import Saver
from megatron_aia.training.stop_signal import StopSignal


class SyncedLoader:
    """Reads steps ahead, and gives corrupt samples their replacements on all ranks together.

    Only some ranks decode a picture, so only they see that it is damaged; but all ranks plan the
    sequences of a step. Hence flags are reduced over all ranks before each step: whether there is a
    problem, whether the run is to stop, and whether a checkpoint is still being written.

    Args:
        config: of the run.
        batches: of this rank.
        parallel: of the run.
        stop: tells whether this rank was asked to stop.
        saver: tells whether this rank still writes a checkpoint.

    Raises:
        ValueError: on every rank, if more samples are damaged than the run allows.
    """

    def __init__(
        self,
        config: Config,
        batches: StepLoader,
        parallel: Parallel,
        stop: StopSignal,
        saver: Saver,
    ) -> None:
        self._batches = batches
        self._stop, self._saver = stop, saver
        self.stops = False
        """Some rank was asked to stop; known on all of them after a step was drawn."""
        self.is_writing = False
        """Some rank still writes a checkpoint; known like ``stops``."""
        self._control = parallel.control
        # The workers' copy of an image tokeniser could not use the GPU, nor as many threads.
        workers = 0 if config.data.image_tokenizer else config.data.num_workers
        self._prefetcher = Prefetcher(batches, workers)
        self._corrupt_list = CorruptList(config, batches.mixture) if dist.get_rank() == 0 else None
        self._max_corrupt = config.data.max_corrupt_samples
        known: list[CorruptSample] = []
        error: Exception | None = None
        try:
            known = self._known_corrupt()
        except (ValueError, OSError) as caught:
            error = caught
        self._share_corrupt(known, error, None)

    @property
    def corrupt_samples(self) -> int:
        """Corrupt samples of which the run knows; counted on rank 0, 0 elsewhere."""
        return 0 if self._corrupt_list is None else len(self._corrupt_list)

    def step(self, position: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of the step whose first sample is at ``position``.

        Every rank calls this, with the same position. If ``stops`` is set afterwards, they may be
        incomplete: no step is to follow.

        Raises:
            UnreadableStep: on every rank, if one of them cannot read its part, or if more samples
                are damaged than the run allows.
        """
        while True:
            batches: list[MicroBatch] = []
            corrupt: tuple[CorruptSample, ...] = ()
            error: Exception | None = None
            try:
                batches = self._prefetcher.step(position)
            except CorruptSamplesFound as found:
                corrupt = found.samples
            except (ValueError, OSError) as caught:
                error = caught
            if not self._agree(bool(corrupt or error)) or self.stops:
                return batches
            try:
                self._share_corrupt(corrupt, error, position)
            except ValueError as stop:
                raise UnreadableStep(str(stop)) from error
            self._prefetcher.restart()

    def close(self) -> None:
        """End the processes that read ahead."""
        self._prefetcher.close()

    def _agree(self, has_problem: bool) -> bool:
        """Return whether any rank has a problem; set ``stops`` and ``is_writing``."""
        own = [has_problem, self._stop.received, self._saver.is_writing]
        flags = torch.tensor(own, dtype=torch.int32)
        # The group itself waits for hours; the watchdog does not, and says what hangs.
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._control)
        problem, self.stops, self.is_writing = map(bool, flags.tolist())
        return problem

    def _share_corrupt(
        self, corrupt: Sequence[CorruptSample], error: Exception | None, position: int | None
    ) -> None:
        """Tell all ranks what each found; every rank raises if one passed an error."""
        broadcast_failure(error and ValueError(str(error)), self._control)
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, corrupt, group=self._control)
        everywhere = sorted({sample for part in found for sample in part})
        self._batches.mark_corrupt(everywhere)
        failure: Exception | None = None
        if self._corrupt_list is not None:
            try:
                self._corrupt_list.add(everywhere, position)
            except (ValueError, OSError) as caught:
                failure = ValueError(str(caught))
        broadcast_failure(failure, self._control)

    def _known_corrupt(self) -> list[CorruptSample]:
        """Return what is known before the first step: by counting tokens, and from the list."""
        if self._corrupt_list is None:
            return []
        earlier = [self._batches.find_corrupt(*place) for place in self._corrupt_list.earlier()]
        # One above the limit is enough to stop the run, and there may be millions.
        counted = islice(self._batches.counted_corrupt(), self._max_corrupt + 1)
        return [sample for sample in earlier if sample] + list(counted)
