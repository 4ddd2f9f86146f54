"""Micro-batches built by worker processes, ahead of the step that needs them."""

import gc
import math
import pickle
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.loader import MicroBatchPlan, StepLoader
from megatron_aia.data.replacements import CorruptSamplesFound, collect
from megatron_aia.runtime.device import has_cuda
from megatron_aia.runtime.processes import follow_parent

_LEAST_AHEAD = 2
"""Micro-batches that each worker is ahead at least."""
_WORKER_IS_GONE = "DataLoader worker (pid"


@dataclass(frozen=True)
class _Request:
    """One micro-batch of this rank, as the main process asks a worker for it."""

    position: int
    """Of the first sample of its step."""
    plan: MicroBatchPlan
    found_corrupt: frozenset[tuple[int, int]]
    """See ``StepLoader``; a worker was forked before the newest of them were found."""


@dataclass(frozen=True)
class _Parcel:
    """A micro-batch, or the error instead of it, as bytes in shared memory.

    One piece of shared memory, not one a tensor: each takes a file descriptor. And not through the
    pipe, where a worker that is killed would leave half a message that nobody can read past.
    """

    data: torch.Tensor
    """uint8, a pickle."""

    @classmethod
    def wrap(cls, outcome: MicroBatch | Exception) -> "_Parcel":
        return cls(torch.from_numpy(np.frombuffer(bytearray(pickle.dumps(outcome)), np.uint8)))

    def open(self) -> MicroBatch:
        outcome = pickle.loads(self.data.numpy().data)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def pin_memory(self) -> "_Parcel | MicroBatch":
        """Called by the loader's own thread where there is a GPU to copy to."""
        outcome = pickle.loads(self.data.numpy().data)
        return outcome.pin_memory() if isinstance(outcome, MicroBatch) else self


class _MicroBatches(Dataset[_Parcel]):
    """What the workers run."""

    def __init__(self, batches: StepLoader) -> None:
        self._batches = batches

    def __getitem__(self, request: _Request) -> _Parcel:
        self._batches.found_corrupt.update(request.found_corrupt)
        try:
            return _Parcel.wrap(self._batches.build(request.position, request.plan))
        except CorruptSamplesFound as found:
            return _Parcel.wrap(found)
        except (ValueError, OSError) as error:
            # As text: not every kind of them survives a pickle.
            return _Parcel.wrap(ValueError(str(error)))


class _Requests:
    """All micro-batches from a position on, in order, to the end of a mixture that has one."""

    def __init__(self, batches: StepLoader) -> None:
        self._batches = batches
        self.position = 0

    def __iter__(self) -> Iterator[_Request]:
        position, step = self.position, self._batches.global_batch_size
        end = self._batches.mixture.num_samples
        while end is None or position + step <= end:
            found = frozenset(self._batches.found_corrupt)
            for plan in self._batches.plan(position):
                yield _Request(position, plan, found)
            position += step


class Prefetcher:
    """Reads steps as ``StepLoader.step`` does, with the same results, but ahead of time.

    Args:
        batches: of this rank.
        num_workers: processes to start at the first step; with 0, steps are read when they are
            asked for.
    """

    def __init__(self, batches: StepLoader, num_workers: int) -> None:
        self._batches = batches
        self._num_workers = num_workers
        self._requests = _Requests(batches)
        self._loader: DataLoader[Any] | None = None
        self._parcels: Iterator[Any] | None = None
        self._next_position = -1

    def step(self, position: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of the step whose first sample is at ``position``.

        Steps that follow each other were read ahead. Any other position starts the reading there,
        and so does a step after ``StepLoader.mark_corrupt``, with ``restart``.

        Raises:
            CorruptSamplesFound: as ``StepLoader.step``.
            ValueError: a sample cannot be read, or a worker was killed.
            OSError: a shard cannot be read, and there are no workers.
        """
        if not self._num_workers:
            return self._batches.step(position)
        count = len(self._batches.plan(position))
        if position != self._next_position:
            self._start(position, count)
        self._next_position = position + self._batches.global_batch_size
        return collect(self._take for _ in range(count))

    def restart(self) -> None:
        """Throw away what was read ahead: it holds samples that now have replacements."""
        self._next_position = -1

    def close(self) -> None:
        """End the workers."""
        if self._loader is not None:
            gc.unfreeze()
        self._parcels = self._loader = None

    def _start(self, position: int, micro_batches_per_step: int) -> None:
        self._requests.position = position
        if self._loader is None:
            ahead = math.ceil(micro_batches_per_step / self._num_workers)
            self._loader = DataLoader(
                _MicroBatches(self._batches),
                batch_size=None,
                sampler=self._requests,
                num_workers=self._num_workers,
                prefetch_factor=max(ahead, _LEAST_AHEAD),
                persistent_workers=True,
                pin_memory=has_cuda(),
                multiprocessing_context="fork",
                worker_init_fn=_initialize_worker,
                # Its own: the loader draws from it, and dropout must not notice.
                generator=torch.Generator(),
            )
            # A full collection writes to every object: workers would part with all memory that
            # they share with this process, about 100 MB in each. What is there now stays anyway.
            gc.collect()
            gc.freeze()
        on_child_death = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
        self._parcels = iter(self._loader)
        # The loader's own handler would raise wherever the main process happens to be.
        signal.signal(signal.SIGCHLD, on_child_death)

    def _take(self) -> MicroBatch:
        assert self._parcels is not None
        try:
            parcel = next(self._parcels)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith(_WORKER_IS_GONE):
                raise
            raise ValueError(
                "a process that reads samples was killed, as the system does when memory or shared "
                "memory (/dev/shm) runs out; start again with more of it, or with a smaller "
                f"--num-workers than {self._num_workers}"
            ) from error
        return parcel if isinstance(parcel, MicroBatch) else parcel.open()


def _initialize_worker(worker: int) -> None:
    follow_parent()
