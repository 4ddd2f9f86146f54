import numpy as np
import pytest
from attention_cases import BOTH_TASKS, GENERATION, KEYS_ONLY_AFTER_ROWS, ROWS_WITHOUT_KEYS, TEXT

from megatron_aia.aia.roles import AIA_TASKS, Task, find_terms, key_code, query_code


def codes(sample: list[int]) -> np.ndarray:
    return np.array(sample, np.uint8)


def test_terms_hold_positions_in_the_row() -> None:
    (term,) = find_terms(codes(GENERATION), start=100)
    assert term.task is Task.GENERATION
    assert term.keys.tolist() == [100, 101, 102, 103, 104]
    assert term.queries.tolist() == [106, 107, 108, 109, 111, 112, 113, 114]


def test_a_sample_may_have_a_term_of_both_tasks() -> None:
    generation, understanding = find_terms(codes(BOTH_TASKS))
    assert (generation.task, understanding.task) == AIA_TASKS
    assert generation.queries.tolist() == understanding.keys.tolist()


@pytest.mark.parametrize("sample", [TEXT, ROWS_WITHOUT_KEYS, KEYS_ONLY_AFTER_ROWS, []])
def test_samples_without_a_visible_pair_are_inactive(sample: list[int]) -> None:
    assert find_terms(codes(sample)) == ()


def test_a_row_that_is_its_own_key_is_active() -> None:
    both = query_code(Task.UNDERSTANDING) + key_code(Task.UNDERSTANDING)
    assert len(find_terms(codes([both]))) == 1
