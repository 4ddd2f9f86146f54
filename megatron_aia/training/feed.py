"""The micro-batches of a step on every rank, or on none: ranks agree before a step begins."""

import datetime
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.loader import GlobalBatches
from megatron_aia.data.prefetch import Prefetcher
from megatron_aia.data.stand_ins import Damage, DamageFound, UnreadableStep
from megatron_aia.runtime.parallel import Parallel, broadcast_failure
from megatron_aia.training.damage_list import DamageList


class StepFeed:
    """Reads steps ahead, and gives damaged samples their stand-ins on all ranks together.

    Only some ranks decode a picture, so only they see that it is damaged; but all ranks plan the
    rows of a step. Hence one number is reduced over all ranks before each step.

    Args:
        config: of the run.
        batches: of this rank.
        parallel: of the run.

    Raises:
        ValueError: on every rank, if more samples are damaged than the run allows.
    """

    def __init__(self, config: Config, batches: GlobalBatches, parallel: Parallel) -> None:
        self._batches = batches
        self._control = parallel.control
        self._timeout = datetime.timedelta(minutes=config.parallel.distributed_timeout_minutes)
        # The workers' copy of an image tokeniser could not use the GPU, nor as many threads.
        workers = 0 if config.data.image_tokenizer else config.data.num_workers
        self._prefetcher = Prefetcher(batches, workers)
        self._damage_list = DamageList(config, batches.mixture) if dist.get_rank() == 0 else None
        self._max_damaged = config.data.max_corrupt_samples
        known: list[Damage] = []
        error: Exception | None = None
        try:
            known = self._known_damage()
        except (ValueError, OSError) as caught:
            error = caught
        self._share_damage(known, error, None)

    @property
    def damaged_samples(self) -> int:
        """Damaged samples of which the run knows; counted on rank 0, 0 elsewhere."""
        return 0 if self._damage_list is None else len(self._damage_list)

    def step(self, position: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of the step whose first sample is at ``position``.

        Every rank calls this, with the same position.

        Raises:
            UnreadableStep: on every rank, if one of them cannot read its part, or if more samples
                are damaged than the run allows.
        """
        while True:
            batches: list[MicroBatch] = []
            damages: tuple[Damage, ...] = ()
            error: Exception | None = None
            try:
                batches = self._prefetcher.step(position)
            except DamageFound as found:
                damages = found.damages
            except (ValueError, OSError) as caught:
                error = caught
            if not self._any_rank(bool(damages or error)):
                return batches
            try:
                self._share_damage(damages, error, position)
            except ValueError as stop:
                raise UnreadableStep(str(stop)) from error
            self._prefetcher.restart()

    def close(self) -> None:
        """End the processes that read ahead."""
        self._prefetcher.close()

    def _any_rank(self, has_problem: bool) -> bool:
        flag = torch.tensor(int(has_problem))
        work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._control, async_op=True)
        # The group itself waits for hours, for the sake of the first look at the data.
        work.wait(self._timeout)
        return bool(flag)

    def _share_damage(
        self, damages: Sequence[Damage], error: Exception | None, position: int | None
    ) -> None:
        """Tell all ranks what each found; every rank raises if one passed an error."""
        broadcast_failure(error and ValueError(str(error)), self._control)
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, damages, group=self._control)
        everywhere = sorted({damage for part in found for damage in part})
        self._batches.mark_damaged(everywhere)
        failure: Exception | None = None
        if self._damage_list is not None:
            try:
                self._damage_list.add(everywhere, position)
            except (ValueError, OSError) as caught:
                failure = ValueError(str(caught))
        broadcast_failure(failure, self._control)

    def _known_damage(self) -> list[Damage]:
        """Return what is known before the first step: by counting tokens, and from the list."""
        if self._damage_list is None:
            return []
        earlier = [self._batches.find_damage(*place) for place in self._damage_list.earlier()]
        # One above the limit is enough to stop the run, and there may be millions.
        counted = islice(self._batches.counted_damage(), self._max_damaged + 1)
        return [damage for damage in earlier if damage] + list(counted)
