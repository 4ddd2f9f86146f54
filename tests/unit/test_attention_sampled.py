"""Queries are sampled: without bias, with the variance its document states, reproducibly."""

from itertools import pairwise

import attention_cases as cases
import numpy as np
import pytest
import torch
from attention_cases import Case, make_case
from attention_checks import ALL_ROWS, num_terms
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from megatron_aia.aia.roles import Task
from megatron_aia.attention import eager, rectangle
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.sampled import SampledIntensity

LONG = [cases.GEN_KEY] * 9 + [cases.PLAIN] + [cases.GEN_ROW] * 41 + [cases.UND_KEY] * 3
LONG_WITH_ANSWER = LONG + [cases.UND_ROW] * 10


@pytest.fixture
def case() -> Case:
    return make_case([[LONG_WITH_ANSWER, cases.TEXT], [cases.INTERLEAVED, LONG]])


def layout_of(case: Case) -> AttentionLayout:
    b, _, s, _ = case.query.shape
    return AttentionLayout(case.segments, s, b)


def row_masses(case: Case) -> list[Tensor]:
    """Masses ``[h, rows]`` of each term, by the dense map."""
    probability = eager._probability(case.query, case.key, layout_of(case), case.scale)
    terms = [(s.batch_index, term) for s in case.segments for term in s.terms]
    return [
        probability[b][:, torch.from_numpy(t.queries)][:, :, torch.from_numpy(t.keys)].sum(-1)
        for b, t in terms
    ]


def gradients(sampled: SampledIntensity, case: Case) -> list[Tensor]:
    query, key, _ = case.inputs()
    sampled.sums(query, key, layout_of(case), case.scale).sum().backward()
    assert query.grad is not None and key.grad is not None
    return [query.grad, key.grad]


def test_rows_are_one_of_each_stratum_and_weights_count_the_rows() -> None:
    rows, weights = SampledIntensity(4, seed=1, layer=0).choose(11, 3, 0, Task.GENERATION)
    assert rows.shape == (3, 4) and weights.sum() == 11
    stops = np.cumsum(weights)
    assert ((stops - weights <= rows) & (rows < stops)).all()
    assert len({tuple(of_head) for of_head in rows}) == 3, "heads draw alike"


@pytest.mark.parametrize("wanted", [11, 12, 1000])
def test_all_rows_are_each_drawn_once(wanted: int) -> None:
    rows, weights = SampledIntensity(wanted, seed=1, layer=0).choose(11, 2, 0, Task.GENERATION)
    assert (rows == np.arange(11)).all() and (weights == 1).all()


def test_draws_differ_by_seed_sample_layer_and_task_and_repeat() -> None:
    def draw(seed: int = 1, layer: int = 0, position: int = 0, task: Task = Task.GENERATION):
        return SampledIntensity(8, seed, layer).choose(800, 2, position, task)[0].tolist()

    others = [draw(2), draw(layer=1), draw(position=1), draw(task=Task.UNDERSTANDING)]
    assert draw() == draw()
    assert draw() not in others


def test_draws_do_not_depend_on_how_heads_are_split() -> None:
    whole, _ = SampledIntensity(8, 1, 2).choose(100, 6, 3, Task.GENERATION)
    for first in (0, 2, 4):
        part, _ = SampledIntensity(8, 1, 2, first).choose(100, 2, 3, Task.GENERATION)
        assert (part == whole[first : first + 2]).all()


def test_the_estimate_has_no_bias_and_the_stated_variance(case: Case) -> None:
    rows, seeds = 5, 800
    masses = row_masses(case)
    exact = torch.stack([m.sum() for m in masses])
    variance = []
    for mass in masses:
        bounds = np.linspace(0, mass.shape[1], min(rows, mass.shape[1]) + 1).astype(int)
        strata = [mass[:, a:b] for a, b in pairwise(bounds)]
        variance.append(sum((x.shape[1] ** 2 * x.var(1, correction=0)).sum() for x in strata))
    stated = torch.stack(variance)

    layout = layout_of(case)
    with torch.no_grad():
        drawn = torch.stack(
            [
                SampledIntensity(rows, seed, 0).sums(case.query, case.key, layout, case.scale)
                for seed in range(seeds)
            ]
        )
    error_of_mean = (stated / seeds).sqrt()
    assert (error_of_mean < 0.02 * exact).all(), "the test could not see a bias"
    assert ((drawn.mean(0) - exact).abs() < 4 * error_of_mean).all()
    torch.testing.assert_close(drawn.var(0), stated, rtol=0.2, atol=1e-12)
    num_heads = case.query.shape[1]
    intensity_sd = drawn.std(0) / torch.tensor([m.numel() for m in masses])
    assert (intensity_sd < 0.5 / (rows * num_heads) ** 0.5).all()


def test_the_gradient_has_no_bias(case: Case) -> None:
    exact = gradients(SampledIntensity(ALL_ROWS, 0, 0), case)
    seeds = 250
    drawn = [gradients(SampledIntensity(5, seed, 0), case) for seed in range(seeds)]
    for expected, of_seeds in zip(exact, zip(*drawn, strict=True), strict=True):
        stacked = torch.stack(of_seeds)
        far = (stacked.mean(0) - expected) / (stacked.std(0) / seeds**0.5).clamp_min(1e-9)
        # Of this many numbers, one in 1e5 lies beyond 4.5 standard errors by chance.
        assert far.abs().max() < 5.5
        assert far.square().mean() == pytest.approx(1, abs=0.5)
        assert stacked.std(0).max() > 0.1 * expected.abs().max(), "nothing was sampled"


@pytest.mark.parametrize("reentrant", [True, False])
def test_recompute_replays_the_rows(case: Case, reentrant: bool) -> None:
    sampled, layout = SampledIntensity(3, seed=1, layer=0), layout_of(case)
    expected = gradients(sampled, case)
    query, key, _ = case.inputs()
    sums = checkpoint(
        lambda q, k: sampled.sums(q, k, layout, case.scale), query, key, use_reentrant=reentrant
    )
    torch.manual_seed(99)
    np.random.seed(99)
    sums.sum().backward()
    assert torch.equal(sums, sampled.sums(query, key, layout, case.scale))
    for x, want in zip((query, key), expected, strict=True):
        assert torch.equal(x.grad, want)


def test_beside_an_attention_that_is_a_black_box() -> None:
    """PyTorch's own attention gives output and gradients; `sampled` adds what belongs to sums."""
    case = make_case([[LONG]], padding=0)
    query, key, value = case.inputs()
    output = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    sums = SampledIntensity(ALL_ROWS, 0, 0).sums(query, key, layout_of(case), case.scale)
    ((output * case.grad_output).sum() + 3 * sums.sum()).backward()

    leaves = case.inputs()
    expected, expected_sums = rectangle.attend(*leaves, layout_of(case), case.scale)
    ((expected * case.grad_output).sum() + 3 * expected_sums.sum()).backward()
    torch.testing.assert_close(sums, expected_sums)
    for x, leaf in zip((query, key, value), leaves, strict=True):
        torch.testing.assert_close(x.grad, leaf.grad)


def test_every_sample_has_a_draw_of_its_own(case: Case) -> None:
    """Two terms of one task in one micro-batch: positions in the run tell them apart."""
    twice = make_case([[LONG, LONG]], padding=0)
    half = twice.query.shape[2] // 2
    for x in (twice.query, twice.key):
        x[:, :, half:] = x[:, :, :half]
    sums = SampledIntensity(3, 0, 0).sums(twice.query, twice.key, layout_of(twice), twice.scale)
    assert num_terms(twice) == 2 and sums[0] != sums[1]
