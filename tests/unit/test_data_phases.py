"""Shares and draws, against counting by hand."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_aia.data.phases import Phase, Schedule, apportion

NUM_SOURCES = 3
weights = st.tuples(*[st.integers(0, 7)] * NUM_SOURCES).filter(any)
phases = st.builds(
    lambda bounded, last: [Phase(*pair) for pair in bounded] + [Phase(last)],
    st.lists(st.tuples(weights, st.integers(1, 60)), max_size=4),
    weights,
)


@given(st.integers(0, 500), st.lists(st.integers(0, 50), min_size=1).filter(any))
def test_apportion_rounds_exact_shares(total: int, parts: list[int]) -> None:
    shares = apportion(total, parts)
    assert sum(shares) == total
    for share, part in zip(shares, parts, strict=True):
        assert abs(share - Fraction(total * part, sum(parts))) < 1


def test_apportion_gives_the_rest_to_the_largest_remainders() -> None:
    assert apportion(5, (2, 1, 1)) == (3, 1, 1)
    assert apportion(2, (1, 1, 1)) == (1, 1, 0)
    assert apportion(7, (10, 5, 1)) == (4, 2, 1)


@settings(deadline=None)
@given(phases, st.integers(0, 2**32))
def test_shares_are_exact_in_every_period_and_phase(parts: list[Phase], seed: int) -> None:
    schedule, start = Schedule(parts, seed), 0
    for phase in parts:
        length = phase.num_samples or 3 * phase.period
        found = [schedule.locate(start + i)[0] for i in range(length)]
        for first in range(0, length - phase.period + 1, phase.period):
            counts = Counter(found[first : first + phase.period])
            assert tuple(counts[i] for i in range(NUM_SOURCES)) == phase.weights
        counts = Counter(found)
        for source, weight in enumerate(phase.weights):
            assert abs(counts[source] - Fraction(length * weight, phase.period)) < 1
        start += length


@settings(deadline=None)
@given(phases, st.integers(0, 2**32), st.integers(0, 250))
def test_no_draw_is_skipped_or_comes_twice(parts: list[Phase], seed: int, position: int) -> None:
    """Across periods, their rests and phases: the draws of a source before a border are 0 to n."""
    schedule = Schedule(parts, seed)
    start, borders = 0, [0]
    for phase in parts:
        for _ in range(phase.num_samples // phase.period if phase.num_samples else 6):
            start += phase.period
            borders.append(start)
        start += phase.num_samples % phase.period if phase.num_samples else 0
        borders.append(start)
    border = max(b for b in borders if b <= position)
    draws: dict[int, list[int]] = {source: [] for source in range(NUM_SOURCES)}
    for earlier in range(border):
        source, draw = schedule.locate(earlier)
        draws[source].append(draw)
    for source in range(NUM_SOURCES):
        assert sorted(draws[source]) == list(range(schedule.draws_before(border)[source]))


@settings(deadline=None)
@given(phases, st.integers(0, 200))
def test_draws_before_a_position_are_counted(parts: list[Phase], position: int) -> None:
    schedule = Schedule(parts, 7)
    counts = Counter(schedule.locate(earlier)[0] for earlier in range(position))
    assert schedule.draws_before(position) == tuple(counts[i] for i in range(NUM_SOURCES))


def test_a_last_phase_with_an_end_goes_on() -> None:
    schedule = Schedule([Phase((1, 0), 5), Phase((1, 2), 4)], 0)
    assert schedule.draws_before(9) == (6, 3)
    assert schedule.draws_before(9 + 30) == (16, 23)


def test_order_of_slots_is_another_in_every_period() -> None:
    schedule = Schedule([Phase((3, 3), 60), Phase((3, 3))], 0)
    orders = {tuple(schedule.locate(p + i)[0] for i in range(6)) for p in range(0, 120, 6)}
    assert len(orders) > 8


@pytest.mark.parametrize("position", [0, 10**15])
def test_locate_is_pure(position: int) -> None:
    parts = [Phase((5, 2, 1), 1003), Phase((0, 1, 1))]
    whole = Schedule(parts, 3)
    assert whole.locate(position) == whole.locate(position) == Schedule(parts, 3).locate(position)
