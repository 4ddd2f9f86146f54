import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_data import toy_encoder, toy_sample

from megatron_aia.aia.roles import Task, find_terms
from megatron_aia.data.packing import (
    deal_equal_lengths,
    deal_sequences,
    pack,
    plan_sequences,
    sequence_length,
    truncate,
)
from megatron_aia.data.sample import TokenizedSample
from megatron_aia.shards.raw_sample import IMAGE_TAG, RawSample, Turn

lengths_lists = st.lists(st.integers(1, 64), max_size=60)


@given(lengths_lists)
def test_pack_holds_every_sample_once_and_no_row_overflows(lengths: list[int]) -> None:
    sequences = pack(lengths, 64)
    assert sorted(number for sequence in sequences for number in sequence) == list(
        range(len(lengths))
    )
    filled = [sum(lengths[number] for number in sequence) for sequence in sequences]
    assert all(0 < tokens <= 64 for tokens in filled)
    # No two sequences fit into one, so at most one sequence is half empty.
    assert sum(tokens <= 32 for tokens in filled) <= 1
    assert sequences == pack(tuple(lengths), 64)


def test_pack_takes_the_fullest_row_with_room() -> None:
    assert pack([5, 3, 7, 2], 10) == [[2, 1], [0, 3]]
    assert pack([4, 4, 4, 4], 8) == [[0, 1], [2, 3]]
    assert pack([], 8) == []
    with pytest.raises(ValueError, match="sample of 9 tokens does not fit a sequence of 8"):
        pack([4, 9], 8)


@given(lengths_lists, st.booleans(), st.integers(1, 12))
def test_plan_is_complete(lengths: list[int], packing: bool, multiple: int) -> None:
    sequences = plan_sequences(lengths, 64, packing, multiple)
    assert len(sequences) % multiple == 0
    assert sorted(number for sequence in sequences for number in sequence) == list(
        range(len(lengths))
    )
    assert all(sum(lengths[number] for number in sequence) <= 64 for sequence in sequences)
    if packing and len(lengths) >= len(sequences):
        assert all(sequences), "a sequence stayed empty while another had several samples"
    if not packing:
        assert all(len(sequence) <= 1 for sequence in sequences)
        with pytest.raises(ValueError, match="does not fit"):
            plan_sequences([65], 64, False, multiple)


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 60))
def test_deal_spreads_rows_and_empty_rows(
    num_ranks: int, micro_batch_size: int, num_micro_batches: int, num_filled: int
) -> None:
    count = num_ranks * micro_batch_size * num_micro_batches
    filled = min(num_filled, count)
    sequences = [[number] for number in range(filled)] + [[] for _ in range(count - filled)]
    dealt = [
        deal_sequences(sequences, rank, num_ranks, micro_batch_size) for rank in range(num_ranks)
    ]
    samples = [
        number for rank in dealt for batch in rank for sequence in batch for number in sequence
    ]
    assert sorted(samples) == list(range(filled))
    empty = [sum(not sequence for batch in rank for sequence in batch) for rank in dealt]
    assert max(empty) - min(empty) <= 1
    for rank in dealt:
        assert [len(batch) for batch in rank] == [micro_batch_size] * num_micro_batches
        filled_rows = [sum(bool(sequence) for sequence in batch) for batch in rank]
        assert max(filled_rows) - min(filled_rows) <= 1


def test_deal_balances_tokens_over_ranks() -> None:
    lengths = list(range(1, 49))
    sequences = plan_sequences(lengths, 64, False, 8)
    tokens = [
        sum(
            lengths[n]
            for batch in deal_sequences(sequences, rank, 4, 2)
            for sequence in batch
            for n in sequence
        )
        for rank in range(4)
    ]
    assert max(tokens) - min(tokens) <= 4


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 60))
def test_like_rows_share_a_micro_batch(
    num_ranks: int, micro_batch_size: int, num_micro_batches: int, num_filled: int
) -> None:
    count = num_ranks * micro_batch_size * num_micro_batches
    lengths = [1 + number * 7 % 61 for number in range(min(num_filled, count))]
    sequences = plan_sequences(lengths, 64, False, count)[:count]
    dealt = [
        deal_equal_lengths(sequences, rank, num_ranks, micro_batch_size)
        for rank in range(num_ranks)
    ]
    assert sorted(
        n for rank in dealt for batch in rank for sequence in batch for n in sequence
    ) == sorted(n for sequence in sequences for n in sequence)

    def tokens(number: int) -> list[int]:
        return [sum(lengths[n] for n in sequence) for rank in dealt for sequence in rank[number]]

    assert all(len(rank) == num_micro_batches for rank in dealt)
    for earlier in range(num_micro_batches - 1):
        assert len(tokens(earlier)) == num_ranks * micro_batch_size
        assert min(tokens(earlier)) >= max(tokens(earlier + 1))


def test_like_rows_are_dealt_in_turns() -> None:
    sequences = [[number] for number in range(8)]
    assert deal_equal_lengths(sequences, 0, 2, 2) == [[[0], [1]], [[6], [7]]]
    assert deal_equal_lengths(sequences, 1, 2, 2) == [[[2], [3]], [[4], [5]]]


@given(lengths_lists.filter(any), st.integers(1, 40))
def test_a_row_is_as_long_as_it_must_be(lengths: list[int], multiple: int) -> None:
    length = sequence_length(lengths, multiple, 64)
    assert max(lengths) <= length <= 64
    assert length == 64 or length % multiple == 0
    assert length - multiple < max(lengths)


def test_length_of_empty_rows() -> None:
    assert sequence_length([0, 0], 8, 64) == 8


def tokenized(task: str, human: str, gpt: str, drop_prompt: bool = False) -> TokenizedSample:
    codes = tuple(np.zeros((2, 3), np.int64) for _ in range((human + gpt).count(IMAGE_TAG)))
    turns = (Turn("human", human), Turn("gpt", gpt))
    return toy_encoder(RawSample("the key", Task[task.upper()], turns, codes), drop_prompt)


def test_truncate_cuts_answers() -> None:
    sample = tokenized("understanding", IMAGE_TAG + "what", "a long answer")
    assert truncate(sample, len(sample)) is sample
    cut = truncate(sample, len(sample) - 5)
    assert len(cut) == len(cut.label_weights) == len(cut.roles) == len(sample) - 5
    assert np.array_equal(cut.tokens, sample.tokens[:-5])
    assert len(find_terms(cut.roles)[0].queries) == 8
    shortest = len(sample) - 12
    assert truncate(sample, shortest).label_weights.sum() == 1
    with pytest.raises(ValueError, match=rf"the key has {len(sample)} tokens.*{shortest} or"):
        truncate(sample, shortest - 1)


def test_truncate_cuts_text() -> None:
    assert (
        truncate(tokenized("text", "abc", "defgh"), 6).label_weights.tolist() == [0] * 4 + [1] * 2
    )
    with pytest.raises(ValueError, match="--seq-length to 5"):
        truncate(tokenized("text", "abc", "defgh"), 4)


@pytest.mark.parametrize("drop_prompt", [False, True])
def test_truncate_never_cuts_a_drawn_image(drop_prompt: bool) -> None:
    sample = tokenized("generation", "draw", IMAGE_TAG, drop_prompt)
    # Only the token that ends the image may go.
    assert truncate(sample, len(sample) - 1).label_weights.sum() == 6
    with pytest.raises(ValueError, match=f"--seq-length to {len(sample) - 1}"):
        truncate(sample, len(sample) - 2)


def test_truncate_never_cuts_a_later_image() -> None:
    sample = tokenized("mixed", "draw", "words " + IMAGE_TAG + "tail")
    assert len(truncate(sample, len(sample) - 5)) == len(sample) - 5
    with pytest.raises(ValueError, match=f"--seq-length to {len(sample) - 5}"):
        truncate(sample, len(sample) - 6)


def test_toy_samples_are_all_different() -> None:
    assert toy_sample("a", "text", "x", "y") != toy_sample("b", "text", "x", "y")
