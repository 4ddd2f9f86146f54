"""Replacements: pure, of the same folder and task, and of true damage alone."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_data import CODEBOOK_SIZE, toy_batches, toy_encoder, toy_samples, write_folder

from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.mixture import SampleAddress
from megatron_aia.data.replacements import CorruptSample, locate_usable

GBS = 12
POSITIONS = range(8 * GBS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [*toy_samples("generation", 7), *toy_samples("understanding", 9)]
    return write_folder(tmp_path_factory.mktemp("data"), samples)


@pytest.fixture(scope="module")
def batches(folder: Path) -> StepLoader:
    return toy_batches(folder)


def marked(batches: StepLoader, numbers: Iterable[int]) -> StepLoader:
    batches.found_corrupt.clear()
    batches.mark_corrupt(CorruptSample(0, number, "") for number in numbers)
    return batches


def located(batches: StepLoader, numbers: set[int], position: int) -> SampleAddress:
    return locate_usable(batches.mixture, position, lambda a: a.sample_number in numbers)


damaged_numbers = st.sets(st.integers(0, 15), max_size=9).filter(
    lambda numbers: len(numbers & set(range(7))) < 7 and len(numbers & set(range(7, 16))) < 9
)
no_deadline = settings(deadline=None)


@no_deadline
@given(damaged_numbers, st.sampled_from(POSITIONS))
def test_a_replacement_is_usable_and_of_the_same_kind(
    batches: StepLoader, numbers: set[int], position: int
) -> None:
    wanted = batches.mixture.locate(position)
    found = located(batches, numbers, position)
    assert found.sample_number not in numbers
    assert (found.task, found.index_number) == (wanted.task, wanted.index_number)
    assert batches.mixture.indexes[0].tasks[found.sample_number] == wanted.task
    if wanted.sample_number not in numbers:
        assert found == wanted


@no_deadline
@given(damaged_numbers, st.randoms(use_true_random=False))
def test_it_does_not_matter_when_damage_is_found(
    batches: StepLoader, numbers: set[int], random: object
) -> None:
    """A rank that knows all damage, and one that meets it sample by sample."""
    for position in range(GBS):
        known: set[int] = set()
        while (met := located(batches, known, position).sample_number) in numbers:
            known.add(met)
        assert located(batches, known, position) == located(batches, numbers, position)


def test_replacements_of_one_sample_differ(batches: StepLoader) -> None:
    """Else one sample would be learnt twice as often as the others."""
    positions = [p for p in range(400) if batches.mixture.locate(p).sample_number == 3]
    assert len({located(batches, {3}, p).sample_number for p in positions}) > 4


def tokens_by_position(step: list[MicroBatch]) -> dict[int, list[int]]:
    return {
        s.position: b.tokens[s.batch_index, s.start : s.stop].tolist()
        for b in step
        for s in b.segments
    }


@pytest.mark.parametrize("layout", [{}, {"size": 2}, {"micro_batch_size": 2, "packing": False}])
def test_a_step_holds_the_replacements_themselves(folder: Path, layout: dict[str, int]) -> None:
    numbers = {0, 1, 2, 7, 8}
    size = layout.pop("size", 1)
    found: dict[int, list[int]] = {}
    for rank in range(size):
        batches = marked(toy_batches(folder, size=size, rank=rank, **layout), numbers)
        found |= tokens_by_position(batches.step(GBS))
    layout["size"] = size
    mixture = batches.mixture
    for position in range(GBS, 2 * GBS):
        address = located(batches, numbers, position)
        raw = mixture.indexes[0].read(address.sample_number, CODEBOOK_SIZE)
        drop = mixture.drops_prompt(position, batches.cfg_drop_prob)
        assert found[position] == toy_encoder(raw, drop).tokens.tolist()


def test_other_steps_stay_as_they_are(folder: Path) -> None:
    number = toy_batches(folder).mixture.locate(0).sample_number
    whole, marked_one = toy_batches(folder), marked(toy_batches(folder), [number])
    for position in range(GBS, 6 * GBS, GBS):
        holds = any(whole.mixture.locate(position + i).sample_number == number for i in range(GBS))
        assert (whole.plan(position) == marked_one.plan(position)) or holds
        same = tokens_by_position(whole.step(position)) == tokens_by_position(
            marked_one.step(position)
        )
        assert same != holds


def test_a_folder_without_any_usable_sample_of_a_task_is_told(batches: StepLoader) -> None:
    with pytest.raises(ValueError, match="all are damaged; rebuild the shards"):
        marked(batches, range(16)).step(0)
    batches.found_corrupt.clear()
