"""Orders of the samples of a source, a new one every epoch: over all of it, or in windows."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import numpy as np

from megatron_aia.data.permutation import Permutation, Stream, hash_integers
from megatron_aia.shards.index import ShardIndex


class Shuffle(Protocol):
    """An order of ``range(size)`` for every epoch."""

    def __call__(self, epoch: int, place: int) -> int:
        """Return the number at ``place`` in the order of ``epoch``; both numbers from 0 on."""


class FullShuffle:
    """Every order of the source is as likely as any other.

    Args:
        size: samples of the source.
        seed: of the run.
        stream: keeps the orders apart from those of other sources.
    """

    def __init__(self, size: int, seed: int, stream: int) -> None:
        self._size, self._seed, self._stream = size, seed, stream

    def __call__(self, epoch: int, place: int) -> int:
        """Return the number at ``place`` in the order of ``epoch``."""
        return _permutation(self._size, self._seed, self._stream, epoch)(place)


class WindowShuffle:
    """Shards in a new order, then samples in a new order inside windows of so many shards.

    At any time a run reads from the shards of one window, which a network file system can keep at
    hand. The memory is O(number of shards).

    Args:
        shard_sizes: samples of the source in each shard, in the order of their numbers.
        window_shards: shards of a window; the last window of an epoch may have fewer.
        seed: of the run.
        stream: keeps the orders apart from those of other sources.
    """

    def __init__(
        self, shard_sizes: Sequence[int], window_shards: int, seed: int, stream: int
    ) -> None:
        self._sizes = tuple(shard_sizes)
        self._starts = (0, *accumulate(self._sizes))
        self._window_shards = window_shards
        self._seed, self._stream = seed, stream
        self._shard_orders: dict[int, tuple[list[int], list[int]]] = {}

    def __call__(self, epoch: int, place: int) -> int:
        """Return the number at ``place`` in the order of ``epoch``."""
        shards, ends = self._shard_order(epoch)
        at = bisect_right(ends, place)
        first = at - at % self._window_shards
        last = min(first + self._window_shards, len(shards)) - 1
        start = ends[first] - self._sizes[shards[first]]
        stream = hash_integers(Stream.WINDOW, self._stream, first)
        order = _permutation(ends[last] - start, self._seed, stream, epoch)
        place = start + order(place - start)
        at = bisect_right(ends, place)
        return self._starts[shards[at] + 1] - (ends[at] - place)

    def _shard_order(self, epoch: int) -> tuple[list[int], list[int]]:
        """Return the shards in the order of ``epoch``, and the place where each of them ends."""
        if epoch not in self._shard_orders:
            while len(self._shard_orders) > 1:  # positions go over a border of epochs, not further
                del self._shard_orders[next(iter(self._shard_orders))]
            order = Permutation(len(self._sizes), self._seed, self._stream, epoch)
            shards = [order(place) for place in range(len(self._sizes))]
            ends = list(accumulate(self._sizes[shard] for shard in shards))
            self._shard_orders[epoch] = shards, ends
        return self._shard_orders[epoch]


def build_shuffle(
    indexes: Sequence[ShardIndex],
    members: Mapping[int, np.ndarray],
    window_shards: int,
    seed: int,
    stream: int,
) -> Shuffle:
    """Return the orders of a source.

    Args:
        indexes: of the run.
        members: number of an index -> numbers of the source's samples there, ascending.
        window_shards: shards of a window; 0 shuffles over the whole source.
        seed: of the run.
        stream: keeps the orders apart from those of other sources.
    """
    if not window_shards:
        return FullShuffle(sum(map(len, members.values())), seed, stream)
    sizes: list[int] = []
    for number, samples in members.items():
        counts = np.bincount(indexes[number].table.shard_numbers[samples])
        sizes += counts[counts > 0].tolist()
    return WindowShuffle(sizes, window_shards, seed, stream)


# Neighbouring positions share an epoch (or a window of it) of each source, or two at its border.
@lru_cache(maxsize=256)
def _permutation(size: int, seed: int, stream: int, epoch: int) -> Permutation:
    return Permutation(size, seed, stream, epoch)
