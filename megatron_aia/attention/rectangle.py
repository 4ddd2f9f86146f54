"""Exact intensities beside a flash kernel, without ever holding an n x n map.

With S the scaled scores, LSE their log-sum-exp, P = exp(S - LSE), D = rowsum(dO * O), and for a
term with rows Q and keys K the row masses s_i = sum_{j in K} P_ij, whose loss gradient is g_i,

    dS_ij = P_ij [dO_i . v_j - (D_i + g_i s_i)] + P_ij g_i [i in Q, j in K].

The last summand needs P only on Q x K, a small rectangle. The shift of D is put into a flash
backward that knows nothing of it: the kernel reads ``out`` only to form D, so it is called with an
``out`` whose first channel is moved until rowsum(dO * out) = D + g s.
"""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from megatron_aia.attention import flash_ops
from megatron_aia.attention.calls import TokenBuffer
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.tile_products import (
    Probability,
    accumulation_dtype,
    add_rectangles,
    measure,
)
from megatron_aia.attention.tiles import Heads, TileBlock, TilePlan, lay_tiles

_MAX_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26, "meta": 1 << 26}
"""Elements of P and of its queries held at a time: 4 MiB in float32 on a CPU, whose caches are what
matters; 256 MiB on CUDA, where every block starts kernels."""

_SMALLEST_GRADIENT = {torch.float32: 2.0**-40, torch.float64: 2.0**-80}
"""Of a row of dO, relative to the row's shift of D: far below rounding, far above underflow."""

_SMALLEST_SHIFT = 2.0**-86
"""Of a row that no term shifts, so that nothing is divided by zero: no gradient is as small."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: AttentionLayout,
    scale: float,
    backend: flash_ops.Backend = "flash",
) -> tuple[Tensor, Tensor]:
    """Causal attention inside each sample, and the attention mass of each term.

    Arguments and results are those of :func:`megatron_aia.attention.eager.attend`; ``backend``
    names the kernel. On CUDA the inputs must be bfloat16 with a head size that is a multiple of 8.
    """
    output, sums = _RectangleAttention.apply(query, key, value, layout, scale, backend)
    return output, sums


class _RectangleAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: AttentionLayout,
        scale: float,
        backend: flash_ops.Backend,
    ) -> tuple[Tensor, Tensor]:
        calls = layout.calls(query.device)
        whole = None if layout.is_one_call(query.device) else TokenBuffer(query)
        output, lses, ctx.extras = query, [], []
        for call in calls:
            inputs = (call.of_queries(query), call.of_keys(key), call.of_keys(value))
            boundaries = call.boundaries(query.device)
            output, lse, extras = flash_ops.forward(*inputs, scale, backend, boundaries)
            if whole is not None:
                call.add_queries(whole, output)
            lses.append(lse)
            ctx.extras.append(extras)
        if whole is not None:
            output = whole.tensor
        for call in calls:
            call.clear_padding(output)
        plan = _plan(query, key, layout)
        sums, saved = measure(query, key, lses, plan, scale)
        if sums is None:
            sums = query.new_zeros(layout.num_terms, dtype=accumulation_dtype(query))
        ctx.save_for_backward(query, key, value, output, *lses, *saved)
        ctx.calls, ctx.plan = calls, plan
        ctx.is_one_call = whole is None
        ctx.scale = scale
        ctx.backend = backend
        ctx.set_materialize_grads(False)
        return output, sums

    @staticmethod
    def backward(
        ctx: Any, grad_output: Optional[Tensor], grad_sums: Optional[Tensor]
    ) -> tuple[Optional[Tensor], ...]:
        query, key, value, output, *saved = ctx.saved_tensors
        lses, of_tiles = saved[: len(ctx.calls)], saved[len(ctx.calls) :]
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        # Of each block of tiles: its lse, its masses and the gradients of its terms.
        weighted = []
        if ctx.plan is not None and grad_sums is not None:
            pairs = zip(of_tiles[0::2], of_tiles[1::2], strict=True)
            weighted = [
                (tiles, lse, mass, grad_sums.index_select(0, tiles.term))
                for tiles, (lse, mass) in zip(ctx.plan.blocks, pairs, strict=True)
            ]
        if weighted:
            shift = _shift_of_rows(query, [(t, mass, grad) for t, _, mass, grad in weighted])
            grad_output, output = _shift_row_sums(grad_output, output, shift)
        elif any(call.padding for call in ctx.calls):
            grad_output = grad_output.clone()
        for call in ctx.calls:
            call.clear_padding(grad_output)
        inputs = (grad_output, query, key, value, output)
        gradients = _flash_backward(ctx, inputs, lses)
        for tiles, lse, _, grad in weighted:
            probability = Probability(query, key, tiles, lse, ctx.scale)
            add_rectangles(gradients, probability, grad, ctx.scale, ctx.plan)
        return *gradients, None, None, None


def _plan(query: Tensor, key: Tensor, layout: AttentionLayout) -> Optional[TilePlan]:
    """Return the tiles of a micro-batch, which its layers share."""
    heads = Heads(query.shape[1], key.shape[1], query.shape[-1])
    dtype = accumulation_dtype(query)
    cache_key = ("tiles", heads, query.device, dtype)
    if cache_key not in layout.cache:
        calls, limit = layout.calls(query.device), _MAX_BLOCK_ELEMENTS[query.device.type]
        layout.cache[cache_key] = lay_tiles(layout, calls, heads, query.device, dtype, limit)
    plan: Optional[TilePlan] = layout.cache[cache_key]
    return plan


def _flash_backward(ctx: Any, inputs: tuple[Tensor, ...], lses: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of query, key and value that the kernels give."""
    grad_output, query, key, value, output = inputs
    buffers = [] if ctx.is_one_call else [TokenBuffer(x) for x in (query, key, value)]
    for call, lse, extras in zip(ctx.calls, lses, ctx.extras, strict=True):
        parts = flash_ops.backward(
            call.of_gradient(grad_output),
            call.of_queries(query),
            call.of_keys(key),
            call.of_keys(value),
            call.of_queries(output),
            lse,
            extras,
            ctx.scale,
            ctx.backend,
            call.boundaries(query.device),
        )
        if not buffers:
            return [_tokens_first(x) for x in parts]
        call.add_queries(buffers[0], parts[0])
        call.add_keys(buffers[1], parts[1])
        call.add_keys(buffers[2], parts[2])
    return [buffer.tensor for buffer in buffers]


def _shift_of_rows(
    query: Tensor, tiles_mass_gradient: Sequence[tuple[TileBlock, Tensor, Tensor]]
) -> Tensor:
    """Return what each row's D grows by, g s, ``[b, h, n]``."""
    b, h, n, _ = query.shape
    shape, dtype = (n * b * h,), accumulation_dtype(query)
    shift = query.new_full(shape, _SMALLEST_SHIFT, dtype=dtype)
    for tiles, mass, gradient in tiles_mass_gradient:
        weighted = mass.view(len(gradient), -1) * gradient.unsqueeze(1)
        shift.index_add_(0, tiles.queries, weighted.flatten())
    return shift.view(n, b, h).permute(1, 2, 0)


def _shift_row_sums(grad_output: Tensor, output: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return both so that rowsum(grad_output * output) has grown by a shift of each row.

    The first channel of the output moves, by the shift over its gradient. However small that is,
    it is rounded relative to itself, so the sum is as exact as any channel's product. A gradient
    that is nothing beside the shift grows first, too little to matter in the results.

    Args:
        grad_output: ``[b, h, n, d]``.
        output: ``[b, h, n, d]``.
        shift: ``[b, h, n]``.
    """
    grad_output, output = grad_output.clone(), output.clone()
    channel = grad_output[..., 0]
    # Away from zero, so that what the channel holds cannot cancel it.
    channel.add_(shift.copysign(channel), alpha=_SMALLEST_GRADIENT[shift.dtype])
    output[..., 0].addcdiv_(shift, channel)
    return grad_output, output


def _tokens_first(x: Tensor) -> Tensor:
    """Return ``[b, h, n, d]`` in the memory order of megatron-core's; most kernels give it so."""
    return x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
