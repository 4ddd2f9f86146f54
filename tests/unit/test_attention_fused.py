"""The fused kernels, interpreted on the CPU, against the definition in float64.

In float32 and float16: the interpreter multiplies the bits of bfloat16 as if they were integers.
"""

import os
from functools import partial

import attention_cases as cases
import pytest
import torch
from attention_cases import make_case
from attention_checks import check, num_terms, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_aia.attention import eager, fused
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.runtime.context_parallel_slices import join_slices, slice_tensor, slices_of_rank

pytest.importorskip("triton", reason="comes with the extra dev, on Linux")
pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU: tests/gpu"
    ),
    # Lanes beyond the end of a row divide by zero in NumPy; they are never stored.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

PACKED = [
    [cases.GENERATION, cases.ONE_TOKEN_SAMPLE, cases.INTERLEAVED],
    [cases.UNDERSTANDING, cases.TEXT, cases.ROWS_AMONG_THEIR_KEYS],
    [cases.BOTH_TASKS, cases.ONE_TOKEN_ANSWER],
]
FP32, FP16 = torch.float32, torch.float16


@pytest.fixture
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = fused.Tile(*request.param, 4, 1)
    monkeypatch.setattr(fused, "tiles", lambda dtype: fused.Tiles(tile, tile, tile))


@pytest.mark.parametrize("small_tiles", [(16, 32), (32, 16)], indirect=True, ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_samples_and_blocks_of_every_kind() -> None:
    check(fused.attend, make_case(PACKED), FP32)


@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_padding_between_packed_rows(dtype: torch.dtype) -> None:
    case = make_case([*PACKED, []], heads=3, groups=1, padding=1)
    found = check(fused.attend, case, dtype)
    assert found[1] < 5e-7
    output, _, *gradients = run(fused.attend, case, torch.ones(num_terms(case)), dtype)
    inside = torch.zeros(output.shape[0], output.shape[2], dtype=torch.bool)
    for segment in case.segments:
        inside[segment.batch_index, segment.start : segment.stop] = True
    for x in (output, *gradients):
        assert (x.transpose(1, 2)[~inside] == 0).all()


@pytest.mark.parametrize("head_size", [64, 80, 96, 128])
def test_head_sizes(head_size: int) -> None:
    rows = [[cases.UNDERSTANDING, cases.ONE_TOKEN_ANSWER]]
    check(fused.attend, make_case(rows, 2, 1, head_size), FP32)
    check(fused.attend, make_case(rows, 2, 1, head_size), FP16)


def test_ranks_that_share_rows_together_are_the_whole() -> None:
    case = make_case(PACKED[:2], heads=2, groups=1, padding=5)
    s, size = case.query.shape[2], 2
    strength = torch.ones(num_terms(case))
    whole = run(eager.attend, case, strength, torch.float64)
    query, key, value = inputs = case.inputs(FP32)
    outputs, sums = [], torch.zeros(num_terms(case))
    for rank in range(size):
        layout = AttentionLayout(case.segments, s, 2, slices_of_rank(s, rank, size))
        held = slice_tensor(query, rank, size, dim=2)
        output, of_rank = fused.attend(held, key, value, layout, case.scale)
        outputs.append(output)
        sums = sums + of_rank
    output = join_slices(outputs, dim=2)
    ((output * case.grad_output.float()).sum() + sums.sum()).backward()
    got = [output, sums, *(x.grad for x in inputs)]
    for ours, expected in zip(got, whole, strict=True):
        torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=2e-6)


def test_no_output_gradient() -> None:
    case = make_case([[cases.BOTH_TASKS]])
    case.grad_output = torch.zeros_like(case.grad_output)
    check(fused.attend, case, FP32, 100.0)


def test_rows_that_see_no_key() -> None:
    late_keys = [cases.UND_ROW, cases.UND_ROW, cases.UND_KEY, cases.UND_ROW]
    check(fused.attend, make_case([[late_keys]]), FP32)


def test_only_the_sums_or_only_the_output_are_used() -> None:
    case = make_case([[cases.BOTH_TASKS]])
    layout = AttentionLayout(case.segments, case.query.shape[2], 1)
    for use in (0, 1):
        by_method = []
        for method, dtype in ((fused, FP32), (eager, torch.float64)):
            inputs = case.inputs(dtype)
            method.attend(*inputs, layout, case.scale)[use].sum().backward()
            by_method.append([x.grad for x in inputs])
        for ours, reference in zip(*by_method, strict=True):
            expected = torch.zeros_like(ours) if reference is None else reference.float()
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_without_terms_and_without_samples() -> None:
    for rows in ([[cases.TEXT]], [[cases.ROWS_WITHOUT_KEYS, cases.KEYS_ONLY_AFTER_ROWS]]):
        case = make_case(rows)
        output, sums, *_ = run(fused.attend, case, torch.zeros(0), FP32)
        assert sums.shape == (0,)
        expected = run(eager.attend, case, torch.zeros(0), torch.float64)[0]
        torch.testing.assert_close(output, expected.float())
    inputs = [torch.ones(1, 2, 4, 16, requires_grad=True) for _ in range(3)]
    output, _ = fused.attend(*inputs, AttentionLayout((), 4, 1), 1.0)
    output.sum().backward()
    assert all((x == 0).all() for x in (output, *(x.grad for x in inputs)))


def test_inputs_may_be_parts_of_one_tensor() -> None:
    """megatron-core's local attention cuts query, key and value out of one projection."""
    case = make_case([[cases.BOTH_TASKS]], heads=2, groups=2)
    joined = torch.cat([case.query, case.key, case.value], dim=-1).float().requires_grad_()
    layout = AttentionLayout(case.segments, case.query.shape[2], 1)
    attend = partial(fused.attend, layout=layout, scale=case.scale)
    output, sums = attend(*joined.chunk(3, dim=-1))
    (output.sum() + sums.sum()).backward()
    apart = [x.float().requires_grad_() for x in (case.query, case.key, case.value)]
    output, sums = attend(*apart)
    (output.sum() + sums.sum()).backward()
    torch.testing.assert_close(joined.grad, torch.cat([x.grad for x in apart], dim=-1))


role_codes = st.lists(st.sampled_from(range(16)), min_size=1, max_size=30)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.lists(role_codes, max_size=2), min_size=1, max_size=2).filter(any),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1)]),
    head_size=st.sampled_from([8, 16, 24]),
    padding=st.integers(0, 4),
    strength=st.sampled_from([1e-6, 1.0, 30.0]),
)
def test_any_roles_and_shapes(
    rows: list, heads: tuple[int, int], head_size: int, padding: int, strength: float
) -> None:
    case = make_case(rows, *heads, head_size, padding)
    if num_terms(case):
        check(fused.attend, case, FP32, strength)
