from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_data import toy_samples, write_folder

from megatron_aia.aia.roles import Task
from megatron_aia.config.data_sources import task_weights
from megatron_aia.data.mix_sources import mix_sources
from megatron_aia.data.mixture import Mixture
from megatron_aia.data.mixture_plan import RATIO_ORDER, plan_tasks
from megatron_aia.data.permutation import (
    Permutation,
    hash_fraction,
    splitmix64,
    splitmix64_array,
)
from megatron_aia.shards.index import ShardIndex, open_index


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> list[ShardIndex]:
    root = tmp_path_factory.mktemp("data")
    first = [*toy_samples("generation", 13), *toy_samples("understanding", 7)]
    second = [*toy_samples("text", 5), *toy_samples("generation", 4), *toy_samples("mixed", 3)]
    return [
        open_index(write_folder(root / "a", first)),
        open_index(write_folder(root / "b", second)),
    ]


def mix(indexes: Sequence[ShardIndex], ratio: str, seed: int = 5) -> Mixture:
    folders = {str(number): index for number, index in enumerate(indexes)}
    return mix_sources(plan_tasks(tuple(folders), ratio), seed, folders.__getitem__)


def test_splitmix64_is_the_published_function() -> None:
    # First outputs of the reference generator seeded with 0: its state advances by the constant.
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    assert splitmix64(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4
    values = [0, 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15]
    assert splitmix64_array(np.array(values, np.uint64)).tolist() == [*map(splitmix64, values)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(), st.integers(0, 300), st.integers(0, 10**9))
def test_permutation_is_a_bijection(size: int, seed: int, source: int, epoch: int) -> None:
    order = Permutation(size, seed, source, epoch)
    numbers = [order(i) for i in range(size)]
    assert sorted(numbers) == list(range(size))
    assert order.take(np.arange(size)).tolist() == numbers


def test_permutation_stays_what_it_is() -> None:
    """A change here would change the data of every run that goes on from a checkpoint."""
    assert [Permutation(10, 1234, 1, 0)(i) for i in range(10)] == [6, 7, 9, 2, 1, 8, 3, 5, 4, 0]
    assert Permutation(3_000_000, 1234, 2, 7)(1_234_567) == 2_834_402


def test_permutation_is_even_and_depends_on_every_argument() -> None:
    orders = Counter(tuple(map(Permutation(3, 0, 0, e), range(3))) for e in range(3000))
    assert len(orders) == 6 and min(orders.values()) > 420
    base = [Permutation(50, 1, 2, 3)(i) for i in range(50)]
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert [Permutation(50, *other)(i) for i in range(50)] != base


@pytest.mark.parametrize("ratio", ["1:1", "2:1", "1:2", "4:1", "2:1:1", "1:0:2", "3:2:1:2"])
def test_ratio_is_exact_in_every_period(indexes: list[ShardIndex], ratio: str) -> None:
    mixture = mix(indexes, ratio)
    weights = zip(RATIO_ORDER, task_weights(ratio), strict=True)
    wanted = {task: weight for task, weight in weights if weight}
    period = sum(wanted.values())
    orders = set()
    for start in range(0, 60 * period, period):
        tasks = [mixture.locate(start + i).task for i in range(period)]
        assert Counter(tasks) == wanted
        orders.add(tuple(tasks))
    assert len(orders) > 1


@pytest.mark.parametrize("ratio", ["1:1", "4:1", "3:2:1:2"])
def test_every_sample_once_an_epoch(indexes: list[ShardIndex], ratio: str) -> None:
    mixture = mix(indexes, ratio)
    seen: dict[tuple[Task, int], list[tuple[int, int]]] = {}
    for position in range(30 * mixture.phases[0].period):
        a = mixture.locate(position)
        seen.setdefault((a.task, a.epoch), []).append((a.index_number, a.sample_number))
        assert mixture.indexes[a.index_number].tasks[a.sample_number] == a.task
    for (task, epoch), samples in seen.items():
        assert len(set(samples)) == len(samples)
        if (task, epoch + 1) in seen:
            assert len(samples) == sum((index.tasks == task).sum() for index in indexes)
    assert seen[Task.GENERATION, 0] != seen[Task.GENERATION, 1]
    assert {index for index, _ in seen[Task.GENERATION, 0]} == {0, 1}


def test_locate_depends_on_nothing_but_position_and_seed(indexes: list[ShardIndex]) -> None:
    forward = [mix(indexes, "2:1:1").locate(p) for p in range(80)]
    mixture = mix(indexes, "2:1:1")
    assert [mixture.locate(p) for p in reversed(range(80))] == forward[::-1]
    assert mixture.locate(10**12).epoch > 10**9
    assert [mix(indexes, "2:1:1", seed=6).locate(p) for p in range(80)] != forward


def test_prompt_drop_is_a_share_of_generation_samples(indexes: list[ShardIndex]) -> None:
    mixture = mix(indexes, "1:1")
    generation = [p for p in range(8000) if mixture.locate(p).task is Task.GENERATION]
    dropped = [p for p in range(8000) if mixture.drops_prompt(p, 0.1)]
    assert set(dropped) < set(generation)
    assert 0.08 < len(dropped) / len(generation) < 0.12
    assert [p for p in range(100) if mixture.drops_prompt(p, 1.0)] == [
        p for p in generation if p < 100
    ]
    assert not any(mixture.drops_prompt(p, 0.0) for p in range(200))
    assert 0 <= hash_fraction(1, 2) < 1


def test_fingerprint_is_of_the_order_of_samples(indexes: list[ShardIndex]) -> None:
    base = mix(indexes, "1:1").fingerprint
    assert mix(indexes, "1:1:0:0").fingerprint == base
    others = [mix(indexes, "1:2"), mix(indexes, "1:1", seed=6), mix(indexes[::-1], "1:1")]
    assert len({base, *(other.fingerprint for other in others)}) == 4


def test_left_out_and_missing_tasks_are_told(indexes: list[ShardIndex]) -> None:
    lines = mix(indexes, "1:1").describe()
    assert any(line.startswith("warning: 5 text samples are left out") for line in lines)
    assert any("17 generation samples, 1 in every 2 positions (50.0%)" in line for line in lines)
    assert not any("warning" in line for line in mix(indexes, "1:1:1:1").describe())
    with pytest.raises(
        ValueError, match="--task-ratio 1:1:1 asks for text samples and --data-path has none"
    ):
        mix(indexes[:1], "1:1:1")


def test_task_weights() -> None:
    assert task_weights("1:1") == (1, 1, 0, 0)
    assert task_weights("10:0:3") == (10, 0, 3, 0)
    assert task_weights("4:3:2:1") == (4, 3, 2, 1)
    for nonsense in (
        "",
        "1",
        "1:",
        "a:b",
        "1:-1",
        "0:0",
        "1.5:1",
        "1:1:1:1:1",
        "1 : 1",
        "²:1",
        "\u0661:1",
    ):
        with pytest.raises(ValueError, match="--task-ratio"):
            task_weights(nonsense)
