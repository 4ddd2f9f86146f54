"""Every attention method on a GPU against the definition in float64, which runs on the CPU."""

from functools import partial

import attention_cases as cases
import pytest
import torch
from attention_cases import make_case
from attention_checks import ALL_ROWS, METHODS, Attend, check
from torch.utils.checkpoint import checkpoint

from megatron_aia.attention import fused, rectangle
from megatron_aia.attention.flash_ops import Backend
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.methods import Method
from megatron_aia.attention.sampled import SampledIntensity
from megatron_aia.attention.self_check import AttentionSetting, check_method
from megatron_aia.runtime.context_parallel_slices import slice_tensor, slices_of_rank
from megatron_aia.runtime.device import (
    flash_attention_packages,
    has_cudnn_attention,
    has_triton,
    use_flash_attention,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BF16, FP32 = torch.bfloat16, torch.float32
PACKED = [
    [cases.GENERATION, cases.ONE_TOKEN_SAMPLE, cases.INTERLEAVED],
    [cases.UNDERSTANDING, cases.TEXT, cases.ROWS_AMONG_THEIR_KEYS],
    [],
    [cases.BOTH_TASKS, cases.ONE_TOKEN_ANSWER],
]
LONG = [cases.GEN_KEY] * 70 + [cases.PLAIN] + [cases.GEN_ROW] * 450 + [cases.PLAIN]
LONG_ANSWER = [cases.UND_KEY] * 400 + [cases.PLAIN] * 3 + [cases.UND_ROW] * 97

CUDNN = pytest.mark.skipif(not has_cudnn_attention(), reason="needs Hopper and cuDNN 9.15")

RUNS: list = [(name, BF16) for name in METHODS] + [("eager", FP32)]
RUNS += [pytest.param("rectangle on cudnn", BF16, marks=CUDNN)]
RUNS += [
    pytest.param("fused", dtype, marks=pytest.mark.skipif(not has_triton(), reason="needs triton"))
    for dtype in (BF16, FP32)
]


def method(name: str) -> Attend:
    if name == "rectangle on cudnn":
        return partial(rectangle.attend, backend="cudnn")
    return fused.attend if name == "fused" else METHODS[name]


PACKAGES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name not in flash_attention_packages(), reason="needs the package and Hopper"
        ),
    )
    for name in ("flash3", "flash4")
]


@pytest.mark.parametrize("backend", ["flash", pytest.param("cudnn", marks=CUDNN), *PACKAGES])
@pytest.mark.parametrize("shape", [(8, 2, 64), (32, 8, 128), (32, 32, 128)])
def test_a_run_would_take_this_kernel(backend: Backend, shape: tuple[int, int, int]) -> None:
    use_flash_attention(backend)
    for name in ("flash", "sampled"):
        given = Method(name, "under test", backend=backend)
        for context_parallel in (False, True):
            setting = AttentionSetting(torch.device("cuda"), BF16, *shape, context_parallel)
            assert check_method(given, setting, may_change_backend=False) is given
    if backend in ("flash3", "flash4"):
        torch.nn.attention.restore_flash_attention_impl()


@pytest.mark.parametrize(("name", "dtype"), RUNS)
@pytest.mark.parametrize("head_size", [64, 80, 96, 128])
def test_packed_samples(name: str, dtype: torch.dtype, head_size: int) -> None:
    check(method(name), make_case(PACKED, 8, 2, head_size), dtype, device="cuda")


@pytest.mark.parametrize("name", ["flash", pytest.param("rectangle on cudnn", marks=CUDNN)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_piece_of_one_query(name: str, rank: int) -> None:
    """Context parallelism leaves one where a sample ends one token past the edge of a chunk."""
    # 700 tokens in chunks of 175: the first sample has one query in the second.
    case = make_case([[[cases.PLAIN] * 176, LONG_ANSWER, [cases.PLAIN] * 24]], 8, 2, 128, padding=0)
    tokens = case.query.shape[2]
    layout = AttentionLayout(case.segments, tokens, 1, slices_of_rank(tokens, rank, 2))
    assert min(p.rows.stop - p.rows.start for p in layout.pieces) == (1 if rank else 24)
    results = []
    for attend, dtype, device in ((method(name), BF16, "cuda"), (METHODS["eager"], FP32, "cpu")):
        query, key, value = case.inputs(dtype, device)
        held = slice_tensor(query, rank, 2, dim=2)
        output, sums = attend(held, key, value, layout, case.scale)
        results.append(
            [output, sums, *torch.autograd.grad(output.sum() + sums.sum(), (key, value))]
        )
        layout.cache.clear()
    for got, want in zip(*results, strict=True):
        error = (got.cpu().float() - want).norm() / want.norm()
        assert error < 0.03


@pytest.mark.parametrize(("name", "dtype"), RUNS)
@pytest.mark.parametrize("sample", [LONG, LONG_ANSWER], ids=["generation", "understanding"])
def test_several_blocks(name: str, dtype: torch.dtype, sample: list[int]) -> None:
    check(method(name), make_case([[sample, cases.TEXT]], 8, 2, 128), dtype, device="cuda")


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_rows_without_output_gradient(name: str, dtype: torch.dtype) -> None:
    case = make_case(PACKED, 4, 2, 64)
    case.grad_output[:, :, ::3] = 0
    check(method(name), case, dtype, device="cuda")
    case.grad_output.zero_()
    check(method(name), case, dtype, 100.0, "cuda")


def test_the_sample_is_drawn_again_under_recompute() -> None:
    case = make_case([[LONG]], 4, 2, 64)
    query, key, _ = case.inputs(BF16, "cuda")
    layout = AttentionLayout(case.segments, case.query.shape[2], 1)
    gradients = []
    for again in (False, True):
        sampled = SampledIntensity(16, 0, 0)
        sums = (
            checkpoint(sampled.sums, query, key, layout, case.scale, use_reentrant=False)
            if again
            else sampled.sums(query, key, layout, case.scale)
        )
        gradients.append(torch.autograd.grad(sums.sum(), (query, key)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", ["flash", "sampled"])
def test_memory_grows_with_the_length_not_its_square(name: str) -> None:
    attend = rectangle.attend if name == "flash" else SampledIntensity(64, 0, 0).attend
    peaks = []
    for factor in (1, 2, 4):
        sample = [cases.GEN_KEY] * 100 + [cases.GEN_ROW] * (1024 * factor - 100)
        case = make_case([[sample]], 8, 2, 128, padding=0)
        layout = AttentionLayout(case.segments, 1024 * factor, 1)
        inputs = case.inputs(BF16, "cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output, sums = attend(*inputs, layout, case.scale)
        (output.sum() + sums.sum()).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[2] < 2.5 * peaks[1] < 6.25 * peaks[0]


def test_all_rows_and_more_are_the_rectangle() -> None:
    case = make_case([[LONG]], 4, 2, 128)
    layout = AttentionLayout(case.segments, case.query.shape[2], 1)
    inputs = case.inputs(BF16, "cuda")
    _, exact = rectangle.attend(*inputs, layout, case.scale)
    sums = SampledIntensity(ALL_ROWS, 0, 0).sums(*inputs[:2], layout, case.scale)
    torch.testing.assert_close(sums, exact, rtol=1e-3, atol=0)
