"""Calls of CUDA's kernels without CUDA: their arithmetic on a CPU, their arguments on ``meta``."""

import itertools
from collections.abc import Callable
from typing import Any

import attention_cases as cases
import pytest
import torch
from attention_cases import make_case
from attention_checks import check, num_terms, run
from support.calls import Calls

from megatron_aia.attention import flash_ops, rectangle, tile_products
from megatron_aia.attention import layout as layouts
from megatron_aia.attention.calls import StripCall
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.runtime.context_parallel_slices import slices_of_rank

FP32, BF16 = torch.float32, torch.bfloat16
ROWS = [
    [cases.GENERATION, cases.ONE_TOKEN_SAMPLE, cases.INTERLEAVED],
    [cases.UNDERSTANDING, cases.TEXT, cases.ROWS_AMONG_THEIR_KEYS],
    [],
    [cases.BOTH_TASKS, cases.ONE_TOKEN_ANSWER],
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Join samples on the CPU, by its kernel for one sample; collect how many each call had."""
    found: list[int] = []

    def by_sample(boundaries: Any, use: Callable[[slice], Any]) -> list[Any]:
        ends = boundaries[0].tolist()
        pairs = list(itertools.pairwise(ends))
        assert boundaries[1] == max(stop - start for start, stop in pairs)
        found.append(len(pairs))
        parts = [use(slice(start, stop)) for start, stop in pairs]
        return [torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True)]

    def forward(query: Any, key: Any, value: Any, scale: float, boundaries: Any) -> Any:
        def use(part: slice) -> Any:
            inputs = (x[:, :, part] for x in (query, key, value))
            return flash_ops._forward(*inputs, True, scale, "flash")[:2]

        return (*by_sample(boundaries, use), ((),))

    def backward(*arguments: Any) -> Any:
        *tensors, _, scale, boundaries = arguments

        def use(part: slice) -> Any:
            inputs = (x[:, :, part] for x in tensors)
            return flash_ops._backward(*inputs, True, (), scale, "flash")

        return tuple(by_sample(boundaries, use))

    monkeypatch.setattr(layouts, "joins_samples", lambda *_: True)
    monkeypatch.setattr(flash_ops, "_forward_joined", forward)
    monkeypatch.setattr(flash_ops, "_backward_joined", backward)
    return found


@pytest.mark.parametrize("dtype", [torch.float64, FP32, BF16])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [[cases.TEXT, cases.UNDERSTANDING]]])
def test_joined_samples_give_the_same_numbers(calls: list[int], rows: Any, dtype: Any) -> None:
    check(rectangle.attend, make_case(rows), dtype)
    sizes = [len(row) for row in rows if row]
    assert calls == sizes * 2, "one call a sequence, forward and backward"


def test_a_row_without_padding_is_not_copied(calls: list[int]) -> None:
    case = make_case(ROWS[:1], padding=0)
    check(rectangle.attend, case, FP32)
    layout = AttentionLayout(case.segments, case.query.shape[2], 1)
    assert layout.is_one_call(case.query.device)
    assert calls == [3, 3]


@pytest.mark.parametrize("dtype", [torch.float64, FP32, BF16])
@pytest.mark.parametrize("padding", [0, 3, 200])
@pytest.mark.parametrize("rows", [[[cases.GENERATION]], [[cases.UNDERSTANDING], [cases.TEXT]]])
def test_a_single_sample_takes_padding_along(
    calls: list[int], rows: Any, padding: int, dtype: Any
) -> None:
    """For kernels that plan by length; nothing but the length of the call may show it."""
    case = make_case(rows, padding=padding)
    check(rectangle.attend, case, dtype)
    assert calls == []
    layout = AttentionLayout(case.segments, case.query.shape[2], len(rows))
    longest = max(call.length for call in layout.calls(case.query.device))
    assert longest == (64 if padding == 200 else len(rows[0][0]) + padding)


@pytest.mark.parametrize("strength", [1e-6, 1.0, 100.0])
def test_products_in_bfloat16_as_on_cuda(
    calls: list[int], strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU multiplies in float32; here it is given what tensor cores are: bf16, fp32 sums."""

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        assert left.dtype == right.dtype == BF16
        return left.float() @ right.float()

    monkeypatch.setattr(tile_products, "_for_products", lambda x: x)
    monkeypatch.setattr(tile_products, "_product", product)
    long = [cases.GEN_KEY] * 40 + [cases.PLAIN] + [cases.GEN_ROW] * 300
    for rows in (ROWS, [[cases.GENERATION]], [[long, cases.UNDERSTANDING]], [[long]]):
        check(rectangle.attend, make_case(rows), BF16, strength)


def test_what_context_parallelism_cuts_is_not_joined() -> None:
    samples = [cases.TEXT, cases.TEXT, cases.GENERATION, cases.INTERLEAVED]
    case = make_case([samples], padding=0)
    length = case.query.shape[2] // 4 * 4 + 4
    joined = 0
    for rank in range(2):
        layout = AttentionLayout(case.segments, length, 1, slices_of_rank(length, rank, 2))
        calls = layout.calls(torch.device("cuda"))
        assert [p for call in calls for p in call.pieces] == list(layout.pieces)
        for call in calls:
            assert isinstance(call, StripCall)
            if len(call.pieces) > 1:
                joined += 1
                assert all(piece.offset == 0 for piece in call.pieces)
                size = call.rows.stop - call.rows.start
                assert size == call.keys.stop - call.keys.start
    assert joined


def test_the_joined_call_is_seen_by_a_mistake_in_it(
    calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that let samples see each other would not pass the checks above."""

    def forward(query: Any, key: Any, value: Any, scale: float, _: Any) -> Any:
        return (*flash_ops._forward(query, key, value, True, scale, "flash")[:2], ((),))

    monkeypatch.setattr(flash_ops, "_forward_joined", forward)
    case = make_case(ROWS)
    with pytest.raises(AssertionError):
        check(rectangle.attend, case, FP32)
    assert run(rectangle.attend, case, torch.ones(num_terms(case)), FP32)


@pytest.mark.parametrize("backend", ["flash", "cudnn"])
@pytest.mark.parametrize("length", [8, 12])
def test_arguments_for_one_sample_fit_the_operators(backend: Any, length: int) -> None:
    query = torch.empty(1, 8, 8, 64, dtype=BF16, device="meta")
    key, value = (torch.empty(1, 2, length, 64, dtype=BF16, device="meta") for _ in range(2))
    output, lse, extras = flash_ops.forward(query, key, value, 0.1, backend)
    assert (output.shape, lse.shape, lse.dtype) == (query.shape, (1, 8, 8), FP32)
    assert len(extras) == (1 if length == 8 else 2)
    gradients = flash_ops.backward(output, query, key, value, output, lse, extras, 0.1, backend)
    assert [x.shape for x in gradients] == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (8, 9), (8, 8), (2, 3)])
def test_cudnn_gets_no_sequence_of_one_token(queries: int, keys: int) -> None:
    query = torch.empty(1, 8, queries, 64, dtype=BF16, device="meta")
    key, value = (torch.empty(1, 2, keys, 64, dtype=BF16, device="meta") for _ in range(2))
    with Calls() as found:
        output, lse, extras = flash_ops.forward(query, key, value, 0.1, "cudnn")
        flash_ops.backward(output, query, key, value, output, lse, extras, 0.1, "cudnn")
    taken = sorted(name.split("_")[4] for name in found.names if "scaled_dot" in name)
    lengths = [queries] if queries == keys else [queries, min(keys - queries, queries)]
    assert taken == sorted(2 * ["flash" if n == 1 else "cudnn" for n in lengths])


def test_arguments_for_joined_samples_fit_the_operators() -> None:
    query = torch.empty(1, 8, 24, 64, dtype=BF16, device="meta")
    key, value = (torch.empty(1, 2, 24, 64, dtype=BF16, device="meta") for _ in range(2))
    where = (torch.empty(4, dtype=torch.int32, device="meta"), 11)
    assert flash_ops.joins_samples(query.device)
    output, lse, extras = flash_ops.forward(query, key, value, 0.1, "flash", where)
    assert (output.shape, lse.shape, lse.dtype) == (query.shape, (1, 8, 24), FP32)
    inputs = (output, query, key, value, output, lse)
    gradients = flash_ops.backward(*inputs, extras, 0.1, "flash", where)
    assert [x.shape for x in gradients] == [query.shape, key.shape, value.shape]
