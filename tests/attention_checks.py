"""Attention methods against the definition in float64: results, gradients, and how far off."""

from collections.abc import Callable

import reference
import torch
from attention_cases import Case
from torch import Tensor

from megatron_aia.attention import eager, rectangle
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.sampled import SampledIntensity

Attend = Callable[..., tuple[Tensor, Tensor]]

ALL_ROWS = 1000
"""More than any sample of the tests has, so that `sampled` is exact."""

METHODS: dict[str, Attend] = {
    "eager": eager.attend,
    "flash": rectangle.attend,
    "sampled": SampledIntensity(ALL_ROWS, seed=0, layer=0).attend,
}

# Of errors(), below. Largest measured over the tests that use them: 8e-11, 6e-7 and 1.1e-2; and of
# the sums, which never pass through bfloat16: 3e-16, 2e-7 and 4e-5.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1.5e-6, torch.bfloat16: 1.5e-2}
SUMS_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1.5e-6, torch.bfloat16: 3e-4}
# The fused kernel alone is tested in float16; measured 3e-4, and 2e-7 of the sums.
_HALF = torch.float16


def run(
    attend: Attend, case: Case, grad_sums: Tensor, dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    """Output, sums, dQ, dK and dV of <O, dO> + <sums, grad_sums>."""
    inputs = case.inputs(dtype, device)
    b, _, s, _ = case.query.shape
    layout = AttentionLayout(case.segments, s, b)
    output, sums = attend(*inputs, layout, case.scale)
    grad_output = case.grad_output.to(output)
    ((output * grad_output).sum() + (sums * grad_sums.to(sums)).sum()).backward()
    return [x.detach().cpu() for x in (output, sums, *(x.grad for x in inputs))]


def run_reference(case: Case, grad_sums: Tensor) -> list[Tensor]:
    inputs = case.inputs()
    output, intensities = reference.attention(*inputs, case.segments, case.scale)
    terms = [term for segment in case.segments for term in segment.terms]
    pairs = [case.query.shape[1] * len(term.queries) for term in terms]
    sums = torch.stack([i * n for i, n in zip(intensities, pairs, strict=True)] or [])
    ((output * case.grad_output).sum() + (sums * grad_sums).sum()).backward()
    return [output.detach(), sums.detach(), *(x.grad for x in inputs)]


def errors(case: Case, got: list[Tensor], expected: list[Tensor], strength: float) -> list[float]:
    """Norm of each error over the norm of the result, or of its summands where they cancel."""
    num_rows = sum(len(term.queries) for segment in case.segments for term in segment.terms)
    grad_probability = case.grad_output.norm() * case.value.norm(dim=-1).max()
    grad_probability += strength * (num_rows * case.query.shape[1]) ** 0.5
    summands = [
        grad_probability * case.key.norm(dim=-1).max() * case.scale,
        grad_probability * case.query.norm(dim=-1).max() * case.scale,
        case.grad_output.norm() + strength,
    ]
    floors = [0.0, 0.0, *(0.1 * x.item() for x in summands)]
    return [
        (a.double() - b).norm().item() / max(b.norm().item(), floor)
        for a, b, floor in zip(got, expected, floors, strict=True)
    ]


def check(
    method: str | Attend,
    case: Case,
    dtype: torch.dtype,
    strength: float = 1.0,
    device: str = "cpu",
) -> list[float]:
    """Compare output, sums and gradients of a method with the definition; return the errors."""
    attend = METHODS[method] if isinstance(method, str) else method
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(num_terms(case))
    grad_sums = strength * signs[: num_terms(case)]
    got = run(attend, case, grad_sums, dtype, device)
    assert got[1].dtype == torch.promote_types(dtype, torch.float32)
    found = errors(case, got, run_reference(case, grad_sums), strength)
    assert max(found) < {**TOLERANCE, _HALF: 1e-3}[dtype]
    assert found[1] < {**SUMS_TOLERANCE, _HALF: 1.5e-6}[dtype]
    return found


def num_terms(case: Case) -> int:
    return sum(len(segment.terms) for segment in case.segments)
