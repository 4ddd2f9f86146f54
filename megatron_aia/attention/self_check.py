"""A method against the definition, on the machine and in the precision of a run.

What the methods ask of a kernel beyond its documented use (a backward that reads the output only to
form D, a log-sum-exp that matches its scores) may differ between versions, and a wrong gradient
would show in no loss for days. So a run checks its method once, in milliseconds, before it starts.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from megatron_aia.aia.roles import AIATerm, Segment, Task
from megatron_aia.attention import eager
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.methods import Attend, Method
from megatron_aia.runtime.context_parallel_slices import slice_tensor, slices_of_rank

_TOKENS = 160
_GRADIENT_OF_SUMS = 4.0
"""Large, so that the term's part of the gradients is about as large as the output's."""

TOLERANCES = {torch.bfloat16: 0.03, torch.float32: 1e-4, torch.float64: 1e-10}
"""Largest error that rounding explains, relative and in the Frobenius norm. Three times what was
measured against float64 in bfloat16 and far more than that in float32."""


@dataclass(frozen=True)
class AttentionSetting:
    """What a method will be used with."""

    device: torch.device
    dtype: torch.dtype
    """Of the activations."""
    heads: int
    """Query heads of this rank."""
    groups: int
    """Key heads of this rank."""
    head_size: int
    """Channels of a head."""
    context_parallel: bool = False
    """Context parallelism cuts sequences: a rank has the first and the last quarter of one."""


def check_method(method: Method, setting: AttentionSetting, may_change_backend: bool) -> Method:
    """Return the method if it is right in this setting, or with the flash kernel if that is.

    Args:
        method: that a run has chosen.
        setting: of the run.
        may_change_backend: ``--attention-backend`` is ``auto``.

    Raises:
        ValueError: the method gives wrong numbers here, or none.
    """
    try:
        error = largest_error(method, setting)
    except RuntimeError as raised:  # cuDNN without a plan for this shape, a broken package
        found = f"raises {' '.join(str(raised).split())[:200]}"
    else:
        if error <= TOLERANCES[setting.dtype]:
            return method
        found = f"has an error of {error:.1e} against the definition"
    if may_change_backend and method.backend != "flash":
        reason = f"exact beside the flash kernel, as {method.backend} {found}"
        other = replace(method, backend="flash", reason=reason)
        return check_method(other, setting, may_change_backend=False)
    raise ValueError(
        f"--aia-attention {method.name} on the {method.backend} kernel {found} on this machine"
        "; pass another --attention-backend or --aia-attention eager"
    )


@lru_cache
def largest_error(method: Method, setting: AttentionSetting) -> float:
    """Return the largest relative error of output, sums and gradients on a small packed sequence.

    `sampled` measures all queries.
    """
    place = (0, 2 if setting.context_parallel else 1)
    layout = AttentionLayout(_segments(), _TOKENS, 1, slices_of_rank(_TOKENS, *place))
    generator = torch.Generator().manual_seed(0)
    heads, groups = setting.heads, setting.groups
    query, key, value, grad_output = (
        torch.randn(_TOKENS, 1, h, setting.head_size, generator=generator)
        for h in (heads, groups, groups, heads)
    )
    grad_output[::7] = 0  # rows whose output nobody looks at
    held = [slice_tensor(x, *place, dim=0) for x in (query, grad_output)]
    inputs = [x.to(setting.device, setting.dtype) for x in (held[0], key, value, held[1])]
    attend = replace(method, sampled_queries=_TOKENS).build(0, 0)
    found = _run(attend, inputs, layout)
    exact = _run(eager.attend, [x.to(_reference_dtype(setting.dtype)) for x in inputs], layout)
    errors = [_error(*pair) for pair in zip(found, exact, strict=True)]
    return float("inf") if any(np.isnan(errors)) else max(errors)


def _segments() -> tuple[Segment, ...]:
    """Return a sample of each task, one without a term, and padding behind them."""

    def segment(start: int, stop: int, *terms: AIATerm) -> Segment:
        return Segment(0, start, stop, terms, start)

    def term(task: Task, queries: tuple[int, int], keys: tuple[int, int]) -> AIATerm:
        return AIATerm(task, np.arange(*queries), np.arange(*keys))

    return (
        segment(0, 70, term(Task.GENERATION, (20, 69), (0, 19))),
        segment(70, 90),
        segment(90, 150, term(Task.UNDERSTANDING, (130, 150), (92, 128))),
    )


def _run(attend: Attend, inputs: list[Tensor], layout: AttentionLayout) -> list[Tensor]:
    """Return output, sums and the gradients of query, key and value."""
    query, key, value, grad_output = (x.detach().permute(1, 2, 0, 3) for x in inputs)
    leaves = tuple(x.requires_grad_() for x in (query, key, value))
    output, sums = attend(query, key, value, layout, query.shape[-1] ** -0.5)
    grad_outputs = (grad_output, torch.full_like(sums, _GRADIENT_OF_SUMS))
    gradients = torch.autograd.grad((output, sums), leaves, grad_outputs)
    return [output.detach(), sums.detach(), *gradients]


def _error(found: Tensor, exact: Tensor) -> float:
    difference = torch.linalg.vector_norm(found.to(exact.dtype) - exact)
    return float(difference / torch.linalg.vector_norm(exact))


def _reference_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of the reference: not all GPUs are quick in float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
