"""Which source a position draws from: shares that are exact in every period and change by phases.

Arithmetic only, from a table with two entries a phase: the position stays the state of the data.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np

from megatron_aia.data.permutation import Permutation, Stream


@dataclass(frozen=True)
class Phase:
    """A part of the run with shares of its own."""

    weights: tuple[int, ...]
    """Samples of each source in one period of ``sum(weights)`` positions."""
    num_samples: int | None = None
    """Length in positions; None, in the last phase only: to the end of the run."""

    @property
    def period(self) -> int:
        """Positions in which every source has its exact share."""
        return sum(self.weights)


@dataclass(frozen=True)
class _Stretch:
    """Periods of equal weights: the whole ones of a phase, or the one that its rest makes."""

    start: int
    """First position."""
    weights: tuple[int, ...]
    first_draws: tuple[int, ...]
    """How often each source was drawn from before ``start``."""

    @property
    def period(self) -> int:
        return sum(self.weights)


class Schedule:
    """The source of every position, and how often that source was drawn from before.

    Every period holds source ``i`` ``weights[i]`` times, in an order of its own (a fixed order
    could give one data-parallel rank only one source). Where the length of a phase is no multiple
    of its period, the rest is a shorter period with shares rounded to whole samples. Draws are
    counted over all phases, so that none is skipped or comes twice.

    Args:
        phases: in order; the last goes on beyond its length.
        seed: chooses the order inside each period.
    """

    def __init__(self, phases: Sequence[Phase], seed: int) -> None:
        self._seed = seed
        self._stretches: list[_Stretch] = []
        start, draws = 0, (0,) * len(phases[0].weights)
        for phase in phases:
            periods, rest = divmod(phase.num_samples or 0, phase.period)
            parts = ((periods, phase.weights), (min(rest, 1), apportion(rest, phase.weights)))
            for count, weights in parts:
                if count:
                    self._stretches.append(_Stretch(start, weights, draws))
                    start += count * sum(weights)
                    draws = _advance(draws, weights, count)
        self._stretches.append(_Stretch(start, phases[-1].weights, draws))
        self._starts = [stretch.start for stretch in self._stretches]

    def locate(self, position: int) -> tuple[int, int]:
        """Return (number of the source, draws from it before this one)."""
        stretch, period, offset = self._find(position)
        slot = self._order(stretch, period)(offset)
        ends = _slot_ends(stretch.weights)
        source = bisect_right(ends, slot)
        weight = stretch.weights[source]
        place = slot - (ends[source] - weight)
        return source, stretch.first_draws[source] + period * weight + place

    def draws_before(self, position: int) -> tuple[int, ...]:
        """Return how often each source is drawn from before ``position``."""
        stretch, period, offset = self._find(position)
        whole = _advance(stretch.first_draws, stretch.weights, period)
        slots = self._order(stretch, period).take(np.arange(offset))
        sources = np.searchsorted(_slot_ends(stretch.weights), slots, side="right")
        counts = np.bincount(sources, minlength=len(whole)).tolist()
        return tuple(draws + count for draws, count in zip(whole, counts, strict=True))

    def _find(self, position: int) -> tuple[_Stretch, int, int]:
        """Return the stretch of a position, its period there and its place in the period."""
        stretch = self._stretches[bisect_right(self._starts, position) - 1]
        return (stretch, *divmod(position - stretch.start, stretch.period))

    def _order(self, stretch: _Stretch, period: int) -> Permutation:
        # No two periods of a run have one number: a stretch has at least as many positions as
        # periods.
        return _slot_order(stretch.period, self._seed, stretch.start + period)


def apportion(total: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Share ``total`` out by weights: whole numbers, each less than 1 from the exact share.

    What rounding down leaves goes to the largest remainders, earlier ones first among equals.
    """
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for number in by_remainder[: total - sum(shares)]:
        shares[number] += 1
    return tuple(shares)


def _advance(draws: Sequence[int], weights: Sequence[int], periods: int) -> tuple[int, ...]:
    return tuple(d + periods * weight for d, weight in zip(draws, weights, strict=True))


# Neighbouring positions share a period, or two.
@lru_cache(maxsize=8)
def _slot_order(size: int, seed: int, number: int) -> Permutation:
    return Permutation(size, seed, Stream.SLOT, number)


@lru_cache(maxsize=64)
def _slot_ends(weights: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(accumulate(weights))
