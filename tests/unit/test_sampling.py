"""Which id is chosen: against Transformers' own processors, and by the numbers of many draws."""

import numpy as np
import pytest
import torch

from megatron_aia.generation.sampling import (
    RowNoise,
    Sampling,
    choose_ids,
    guide,
    keep_likely,
    row_key,
)

LOGITS = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("top_k", [0, 5, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.05])
def test_the_filters_are_those_of_transformers(
    temperature: float, top_k: int, top_p: float
) -> None:
    generation = pytest.importorskip("transformers").generation
    expected = LOGITS / temperature
    if top_k:
        expected = generation.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = generation.TopPLogitsWarper(top_p)(None, expected)
    found = keep_likely(LOGITS, Sampling(temperature, top_k, top_p))
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), rtol=0, atol=1e-6)


def test_guidance_is_that_of_the_authors() -> None:
    """Emu3's authors guide log-probabilities; each row then differs by a constant."""
    c, u = LOGITS[:1], LOGITS[1:2]
    theirs = 3.0 * (c.log_softmax(-1) - u.log_softmax(-1)) + u.log_softmax(-1)
    ours = guide(torch.cat((c, u)), 3.0)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))
    torch.testing.assert_close(guide(torch.cat((c, u)), 1.0), c)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.6, top_k=9), Sampling(top_p=0.7)])
def test_ids_are_drawn_with_their_probabilities(sampling: Sampling) -> None:
    """Chi-square over 20,000 draws, each with a key of its own: p below 1e-6 is no accident."""
    draws = 20_000
    noise = RowNoise([row_key("draw", number) for number in range(draws)])
    drawn = noise.draw(40, np.ones(draws, bool), torch.device("cpu"))
    ids = choose_ids(LOGITS[:1].expand(draws, -1), sampling, drawn)
    probabilities = keep_likely(LOGITS[:1], sampling).softmax(-1)[0].double()
    counts = torch.bincount(ids, minlength=40).double()
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * draws
    often = expected >= 5
    statistic = float(((counts - expected)[often] ** 2 / expected[often]).sum())
    degrees = int(often.sum()) - 1
    # Wilson and Hilferty's normal approximation of the chi-square distribution.
    z = ((statistic / degrees) ** (1 / 3) - 1 + 2 / (9 * degrees)) / (2 / (9 * degrees)) ** 0.5
    assert z < 4.75
    assert len(set(ids.tolist())) > 2


def test_the_most_probable_id_needs_no_numbers() -> None:
    torch.testing.assert_close(choose_ids(LOGITS, Sampling(0.0), None), LOGITS.argmax(-1))


def test_numbers_of_a_row_are_its_own() -> None:
    """Neither other rows nor steps at which a token is forced move them."""
    cpu, both = torch.device("cpu"), np.array([True, True])
    keys = [row_key(7, "a"), row_key(7, "b")]
    pair = RowNoise(keys)
    first = pair.draw(5, np.array([True, False]), cpu)
    second, third = pair.draw(5, both, cpu), pair.draw(5, both, cpu)
    alone = RowNoise(keys[1:])
    for expected in (second, third):
        torch.testing.assert_close(alone.draw(5, both[:1], cpu)[0], expected[1], rtol=0, atol=0)
    assert first[1].tolist() == [1.0] * 5
    assert not torch.equal(first[0], second[0]) and not torch.equal(second[0], second[1])
    assert bool((second > 0).all())


def test_keys_differ_where_anything_does() -> None:
    keys = [row_key(1, 23, "a"), row_key(12, 3, "a"), row_key(1, 23, "b"), row_key(1, 2, "3a")]
    assert len(set(keys)) == 4
    assert row_key(42, 0, "a red boat") == row_key(42, 0, "a red boat") < 1 << 128
