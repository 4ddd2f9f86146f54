"""Shuffling in windows of shards: a bijection that stays inside its windows."""

from itertools import pairwise

import pytest
from fake_index import fake_index
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_aia.aia.roles import Task
from megatron_aia.data.mix_sources import mix_sources
from megatron_aia.data.mixture_plan import MixturePlan, MixtureSource
from megatron_aia.data.phases import Phase
from megatron_aia.data.shuffle import FullShuffle, WindowShuffle, build_shuffle

shard_sizes = st.lists(st.integers(1, 12), min_size=1, max_size=12)


def shards_of(sizes: list[int], numbers: list[int]) -> list[int]:
    """Return the shard of every number, by counting."""
    shard_of = [shard for shard, size in enumerate(sizes) for _ in range(size)]
    return [shard_of[number] for number in numbers]


@settings(deadline=None)
@given(shard_sizes, st.integers(1, 14), st.integers(0, 2**40), st.integers(0, 9))
def test_every_sample_once_and_one_window_at_a_time(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    shuffle = WindowShuffle(sizes, window, seed, stream=3)
    order = [shuffle(epoch, place) for place in range(sum(sizes))]
    assert sorted(order) == list(range(sum(sizes)))

    start, seen = 0, set()
    while start < len(order):
        # A window ends where the samples of all its shards were seen.
        shards: set[int] = set()
        stop = start
        while stop == start or stop - start < sum(sizes[shard] for shard in shards):
            shards |= set(shards_of(sizes, order[stop : stop + 1]))
            stop += 1
        assert len(shards) <= window and not shards & seen
        seen |= shards
        start = stop
    assert len(seen) == len(sizes)


def test_a_window_is_full_and_mixed() -> None:
    sizes = [10] * 9
    shuffle = WindowShuffle(sizes, 3, seed=1, stream=2)
    windows = set()
    for epoch in range(8):
        for first in (0, 30, 60):
            shards = shards_of(sizes, [shuffle(epoch, first + i) for i in range(30)])
            assert len(set(shards)) == 3
            assert sum(a != b for a, b in pairwise(shards)) > 10
            windows.add(frozenset(shards))
    assert len(windows) > 12, "other shards meet in every epoch"


def test_it_depends_on_place_epoch_seed_and_stream_alone() -> None:
    sizes, places = [5, 1, 7, 3, 4], range(20)
    order = [WindowShuffle(sizes, 2, 1, 2)(3, place) for place in places]
    shuffle = WindowShuffle(sizes, 2, 1, 2)
    for epoch in (0, 7, 3, 1):
        if [shuffle(epoch, place) for place in reversed(places)][::-1] == order:
            assert epoch == 3
    assert [shuffle(3, place) for place in places] == order
    for other in (WindowShuffle(sizes, 2, 2, 2), WindowShuffle(sizes, 2, 1, 3)):
        assert [other(3, place) for place in places] != order


def test_shards_are_those_of_the_samples_in_use() -> None:
    tasks = [Task.TEXT] * 10 + [Task.MIXED] * 10 + [Task.TEXT] * 6
    indexes = [fake_index("a", tasks, 10), fake_index("b", [Task.TEXT] * 7, 4)]
    members = {i: (index.tasks == Task.TEXT).nonzero()[0] for i, index in enumerate(indexes)}
    shuffle = build_shuffle(indexes, members, 1, 0, 0)
    order = [shuffle(0, place) for place in range(23)]
    assert sorted(order) == list(range(23))
    # Windows of one shard: the samples of each stand together.
    shards = shards_of([10, 6, 4, 3], order)
    assert sum(a != b for a, b in pairwise(shards)) == 3
    assert isinstance(build_shuffle(indexes, members, 0, 0, 0), FullShuffle)


@pytest.mark.parametrize("window", [1, 2, 50])
def test_a_mixture_of_windows_is_exact_too(window: int) -> None:
    index = fake_index("a", [Task.GENERATION, Task.UNDERSTANDING] * 33, 10)
    sources = (
        MixtureSource("g", ("a",), Task.GENERATION),
        MixtureSource("u", ("a",), Task.UNDERSTANDING, limit=20),
    )
    plan = MixturePlan(sources, (Phase((2, 1)),))
    mixture = mix_sources(plan, 5, lambda _: index, window)
    seen: dict[tuple[int, int], list[int]] = {}
    for position in range(300):
        a = mixture.locate(position)
        seen.setdefault((a.source, a.epoch), []).append(a.sample_number)
    for (source, epoch), numbers in seen.items():
        assert len(set(numbers)) == len(numbers)
        if (source, epoch + 1) in seen:
            assert len(numbers) == (33, 20)[source]
    assert f"shuffled in windows of {window} shards of a source" in mixture.describe()
    full = mix_sources(plan, 5, lambda _: index)
    assert full.fingerprint != mixture.fingerprint
    assert full.locate(7) == mix_sources(plan, 5, lambda _: index, 0).locate(7)
