"""A row shared by several ranks against the definition; the ranks run one after the other here."""

import attention_cases as cases
import pytest
import reference
import torch
from attention_cases import Case, make_case
from attention_checks import METHODS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_aia.attention import flash_ops
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.sampled import SampledIntensity
from megatron_aia.runtime.context_parallel_slices import join_slices, slice_tensor, slices_of_rank

SIZES = [2, 3, 4]

# One sample over all chunks, samples cut once or twice, chunks of many samples, padding.
ROWS = [
    [cases.INTERLEAVED + cases.BOTH_TASKS],
    [cases.GENERATION, cases.ONE_TOKEN_SAMPLE, cases.INTERLEAVED],
    [cases.UNDERSTANDING, cases.TEXT, cases.ONE_TOKEN_ANSWER, cases.ROWS_AMONG_THEIR_KEYS],
    [],
    [cases.BOTH_TASKS],
]

# Of errors(), below. Largest measured for ROWS: 7e-14, 3e-7 and 6e-3.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-6, torch.bfloat16: 1.2e-2}


def shared_case(rows: list, size: int, **shape: int) -> Case:
    longest = max(sum(map(len, samples)) for samples in rows)
    return make_case(rows, padding=-longest % (2 * size), **shape)


def run(method: str, case: Case, size: int, grad_sums: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Output, sums, dQ, dK and dV of <O, dO> + <sums, grad_sums>, from the parts of all ranks."""
    query, key, value = inputs = case.inputs(dtype)
    b, _, s, _ = query.shape
    outputs, sums = [], []
    for rank in range(size):
        layout = AttentionLayout(case.segments, s, b, slices_of_rank(s, rank, size))
        held = slice_tensor(query, rank, size, dim=2)
        output, of_rank = METHODS[method](held, key, value, layout, case.scale)
        outputs.append(output)
        sums.append(of_rank)
    output, total = join_slices(outputs, dim=2), torch.stack(sums).sum(0)
    ((output * case.grad_output.to(dtype)).sum() + (total * grad_sums.to(total)).sum()).backward()
    return [output.detach(), total.detach(), *(x.grad for x in inputs)]


def run_reference(case: Case, grad_sums: Tensor) -> list[Tensor]:
    inputs = case.inputs()
    output, intensities = reference.attention(*inputs, case.segments, case.scale)
    terms = [term for segment in case.segments for term in segment.terms]
    pairs = [case.query.shape[1] * len(term.queries) for term in terms]
    sums = torch.stack([i * n for i, n in zip(intensities, pairs, strict=True)])
    ((output * case.grad_output).sum() + (sums * grad_sums).sum()).backward()
    return [output.detach(), sums.detach(), *(x.grad for x in inputs)]


def errors(method: str, case: Case, size: int, dtype: torch.dtype) -> list[float]:
    num_terms = sum(len(segment.terms) for segment in case.segments)
    grad_sums = torch.tensor([1.0, -1.0] * num_terms, dtype=torch.float64)[:num_terms]
    got = run(method, case, size, grad_sums, dtype)
    expected = run_reference(case, grad_sums)
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", SIZES)
def test_ranks_together_are_the_definition(method: str, size: int, dtype: torch.dtype) -> None:
    assert max(errors(method, shared_case(ROWS, size), size, dtype)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_without_an_output_gradient(dtype: torch.dtype) -> None:
    """The shift of D has no direction to move along, and reaches both calls of the kernel."""
    case = shared_case(ROWS, 2)
    case.grad_output = case.grad_output * (torch.arange(case.query.shape[2]) % 3 > 0).unsqueeze(-1)
    assert max(errors("flash", case, 2, dtype)) < TOLERANCE[dtype]


role_codes = st.lists(st.sampled_from(range(16)), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.lists(role_codes, max_size=3), min_size=1, max_size=3).filter(
        lambda rows: sum(len(sample) for samples in rows for sample in samples) > 12
    ),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 2)]),
    size=st.sampled_from(SIZES),
    seed=st.integers(0, 1000),
)
def test_any_roles_and_shapes(rows: list, heads: tuple[int, int], size: int, seed: int) -> None:
    case = shared_case(rows, size, heads=heads[0], groups=heads[1], head_size=8, seed=seed)
    if any(segment.terms for segment in case.segments):
        for method in METHODS:
            assert max(errors(method, case, size, torch.float64)) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("size", SIZES)
def test_ranks_draw_the_rows_of_one_sample(size: int) -> None:
    case = shared_case(ROWS, size)
    b, _, s, _ = case.query.shape
    sampled = SampledIntensity(3, seed=0, layer=0)
    whole = sampled.sums(case.query, case.key, AttentionLayout(case.segments, s, b), case.scale)
    of_ranks = []
    for rank in range(size):
        layout = AttentionLayout(case.segments, s, b, slices_of_rank(s, rank, size))
        held = slice_tensor(case.query, rank, size, dim=2)
        of_ranks.append(sampled.sums(held, case.key, layout, case.scale))
    torch.testing.assert_close(torch.stack(of_ranks).sum(0), whole)


def test_pieces_of_a_sample_and_of_a_term() -> None:
    case = make_case([[cases.TEXT, cases.GENERATION]], padding=1)
    (term,) = case.segments[1].terms
    assert case.query.shape[2] == 24 and term.queries[0] == 13 and term.keys[-1] == 11
    layout = AttentionLayout(case.segments, 24, 1, slices_of_rank(24, 1, 2))
    assert [(p.rows, p.keys, p.offset) for p in layout.pieces] == [
        (slice(0, 1), slice(0, 7), 6),
        (slice(1, 6), slice(7, 12), 0),
        (slice(6, 12), slice(7, 18), 5),
    ]
    nothing, no_rows, (found,) = layout.rectangles
    assert nothing == no_rows == ()
    assert (found.rows + layout.pieces[2].offset + 7).tolist() == [
        r for r in term.queries if 12 <= r < 18
    ]
    assert (found.keys + 7).tolist() == term.keys.tolist()


@pytest.mark.parametrize("before", [1, 5, 30])
def test_queries_at_the_end_of_a_sample(before: int) -> None:
    """Against attention of the whole sample: output, log-sum-exp and gradients."""
    torch.manual_seed(0)
    m = before + 7
    query, grad = (torch.randn(1, 4, m, 16, dtype=torch.float64) for _ in range(2))
    key, value = (torch.randn(1, 2, m, 16, dtype=torch.float64) for _ in range(2))
    grad[:, :, :before] = 0
    whole, whole_lse, extras = flash_ops.forward(query, key, value, 0.3)
    expected = flash_ops.backward(grad, query, key, value, whole, whole_lse, extras, 0.3)
    end, grad_end = query[:, :, before:], grad[:, :, before:]
    output, lse, extras = flash_ops.forward(end, key, value, 0.3)
    torch.testing.assert_close(output, whole[:, :, before:])
    torch.testing.assert_close(lse, whole_lse[:, :, before:])
    got = flash_ops.backward(grad_end, end, key, value, output, lse, extras, 0.3)
    torch.testing.assert_close(got[0], expected[0][:, :, before:])
    torch.testing.assert_close(got[1:], expected[1:])
