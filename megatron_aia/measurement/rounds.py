"""Samples dealt to the replicas of a model, a round after the other, and results brought back."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from megatron_aia.measurement.samples import InactiveSampleError
from megatron_aia.runtime.parallel import Parallel, broadcast_failure

_Read = TypeVar("_Read")
_MICRO_BATCHES = 4
"""Of a replica in a round, times its pipeline stages."""


def run_rounds(
    parallel: Parallel,
    numbers: Sequence[int],
    read: Callable[[int], _Read],
    look: Callable[[list[_Read | None]], list[Any]],
) -> Iterator[tuple[list[tuple[int, Any]], dict[int, str]]]:
    """Read samples and look at them; every rank calls this.

    Args:
        parallel: of the model.
        numbers: of the samples.
        read: returns what ``look`` takes of a sample, or raises InactiveSampleError.
        look: runs a replica's samples, None in the place of a missing one, and returns something
            of each that can be pickled.

    Yields:
        By round on rank 0: each sample's number with what ``look`` returned of it, from every rank
        that holds layers of its own; and the samples that were left out, with their reason. Empty
        on other ranks.

    Raises:
        ValueError: on every rank, if a sample cannot be read on one.
    """
    per_replica = _MICRO_BATCHES * parallel.pipeline_size
    per_round = per_replica * parallel.data_size
    for start in range(0, len(numbers), per_round):
        own = numbers[start : start + per_round][parallel.data_rank :: parallel.data_size]
        samples, reasons = _read_all(parallel, own, read)
        filled = [samples.get(number) for number in own]
        filled += [None] * (-len(own) % parallel.pipeline_size)
        results = look(filled) if filled else []
        found = [
            (number, result)
            for number, result in zip(own, results, strict=False)
            if number in samples
        ]
        # Ranks that share heads or tokens hold equal values.
        speaks = parallel.tensor_rank == parallel.context_rank == 0
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, found if speaks else [], group=parallel.control)
        yield [pair for part in parts for pair in part] if dist.get_rank() == 0 else [], reasons


def _read_all(
    parallel: Parallel, numbers: Sequence[int], read: Callable[[int], _Read]
) -> tuple[dict[int, _Read], dict[int, str]]:
    """Return this replica's samples, and why samples of any replica are left out.

    A sample is left out on all ranks of its replica, whichever of them found out why.
    """
    samples: dict[int, _Read] = {}
    reasons: dict[int, str] = {}
    error: Exception | None = None
    for number in numbers:
        try:
            samples[number] = read(number)
        except InactiveSampleError as inactive:
            reasons[number] = str(inactive)
        except (ValueError, OSError) as caught:
            error = ValueError(str(caught))
            break
    broadcast_failure(error, parallel.control)
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, reasons, group=parallel.control)
    merged = {number: reason for part in everywhere for number, reason in part.items()}
    return {n: sample for n, sample in samples.items() if n not in merged}, merged
