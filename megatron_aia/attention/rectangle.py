"""Exact intensities beside a flash kernel, without ever holding an n x n map.

With S the scaled scores, LSE their log-sum-exp, P = exp(S - LSE), D = rowsum(dO * O), and for a
term with rows Q and keys K the row masses s_i = sum_{j in K} P_ij, whose loss gradient is g_i,

    dS_ij = P_ij [dO_i . v_j - (D_i + g_i s_i)] + P_ij g_i [i in Q, j in K].

The last summand needs P only on Q x K, a small rectangle. The shift of D is put into a flash
backward that knows nothing of it: the kernel reads ``out`` only to form D, so it is called with an
``out`` moved along dO until rowsum(dO * out) = D + g s.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from megatron_aia.attention import flash_ops
from megatron_aia.attention.layout import AttentionLayout, Rectangle

_MAX_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Elements of P and of its queries held at a time: 4 MiB in float32 on a CPU, whose caches are what
matters; 256 MiB on CUDA, where every block starts kernels."""

_SMALLEST_GRADIENT = 2.0**-40
"""Of a row of dO, relative to the row's shift of D: far below rounding, far above underflow."""


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
    ) -> tuple[Optional[Tensor], Tensor]:
        joined = flash_ops.joins_samples(query.device, backend)
        # A single strip needs no copy: kernels give their output in the memory order of the query.
        output = None if layout.is_one_strip(joined) else torch.zeros_like(query)
        sums = query.new_zeros(layout.num_terms, dtype=_accumulation_dtype(query))
        lses, masses, ctx.extras = [], [], []
        rectangles = iter(layout.rectangles(query.device))
        for strip in layout.strips(joined):
            q, k, v = strip.of_rows(query), strip.of_keys(key), strip.of_keys(value)
            where = (strip.cumulative(query.device), strip.longest)
            strip_output, lse, extras = flash_ops.forward(q, k, v, scale, backend, where)
            output = _place(output, strip_output, strip.of_rows)
            lses.append(lse)
            ctx.extras.append(extras)
            for piece in strip.pieces:
                views = (
                    strip.rows_of(piece, q),
                    strip.keys_of(piece, k),
                    strip.rows_of(piece, lse),
                )
                for rectangle in next(rectangles):
                    blocks = _probability_blocks(*views, rectangle, scale)
                    mass = torch.cat([block.probability.sum(-1) for block in blocks], dim=1)
                    sums[rectangle.term] += mass.sum()
                    masses.append(mass)
        ctx.save_for_backward(query, key, value, output, *lses, *masses)
        ctx.layout = layout
        ctx.scale = scale
        ctx.backend = backend
        ctx.set_materialize_grads(False)
        return output, sums

    @staticmethod
    def backward(
        ctx: Any, grad_output: Optional[Tensor], grad_sums: Optional[Tensor]
    ) -> tuple[Optional[Tensor], ...]:
        query, key, value, output, *saved = ctx.saved_tensors
        joined = flash_ops.joins_samples(query.device, ctx.backend)
        strips = ctx.layout.strips(joined)
        lses, masses = saved[: len(strips)], iter(saved[len(strips) :])
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        gradients: list[Optional[Tensor]] = [None, None, None]
        if not ctx.layout.is_one_strip(joined):
            gradients = [torch.zeros_like(x) for x in (query, key, value)]
        rectangles = iter(ctx.layout.rectangles(query.device))
        for strip, lse, extras in zip(strips, lses, ctx.extras, strict=True):
            found = [(piece, r) for piece in strip.pieces for r in next(rectangles)]
            weighted = [] if grad_sums is None else [(*f, grad_sums[f[1].term]) for f in found]
            q, out, d_out = (strip.of_rows(x) for x in (query, output, grad_output))
            k, v = strip.of_keys(key), strip.of_keys(value)
            if weighted:
                d_out, out = d_out.clone(), out.clone()
            for piece, rectangle, grad_sum in weighted:
                shifted = (strip.rows_of(piece, d_out), strip.rows_of(piece, out))
                _shift_row_sums(*shifted, rectangle.rows, grad_sum * next(masses))
            where = (strip.cumulative(query.device), strip.longest)
            d_q, d_k, d_v = flash_ops.backward(
                d_out, q, k, v, out, lse, extras, ctx.scale, ctx.backend, where
            )
            for piece, rectangle, grad_sum in weighted:
                keys = strip.keys_of(piece, k)
                rows = (strip.rows_of(piece, q), keys, strip.rows_of(piece, lse))
                blocks = _probability_blocks(*rows, rectangle, ctx.scale)
                grads = (strip.rows_of(piece, d_q), strip.keys_of(piece, d_k))
                _add_rectangle(*grads, keys, rectangle, blocks, grad_sum * ctx.scale)
            views = (strip.of_rows, strip.of_keys, strip.of_keys)
            parts = zip(gradients, (d_q, d_k, d_v), views, strict=True)
            gradients = [_place(*part) for part in parts]
        return *gradients, None, None, None


def _place(whole: Optional[Tensor], part: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor:
    """Add the part of a strip to the whole; a part that is everything is the whole, uncopied.

    Added, because two pieces of a sample share its first keys.
    """
    if whole is None:
        return part
    view(whole).add_(part)
    return whole


class _Block(NamedTuple):
    """Some rows of a rectangle."""

    rows: Tensor
    """int64 ``[rows]``, positions in the piece."""
    query: Tensor
    """``[g, h / g * rows, d]``, in the precision of the sums."""
    probability: Tensor
    """P ``[h, rows, keys]``, in the precision of the sums; the reader may overwrite it."""


def _probability_blocks(
    query: Tensor, key: Tensor, lse: Tensor, rectangle: Rectangle, scale: float
) -> Iterator[_Block]:
    """Compute P on a rectangle, a bounded number of rows at a time.

    Scores are not rounded to bfloat16: they must be as exact as the log-sum-exp they meet.
    """
    heads, keys = query.shape[0], rectangle.keys
    dtype = _accumulation_dtype(query)
    key_columns = _take(key, keys).to(dtype) * scale
    for rows in _row_blocks(rectangle.rows, heads * (len(keys) + query.shape[-1])):
        query_rows = _by_key_head(_take(query, rows).to(dtype), key)
        scores = (query_rows @ key_columns.transpose(-1, -2)).view(heads, len(rows), len(keys))
        probability = scores.sub_(lse.index_select(1, rows).unsqueeze(-1)).exp_()
        if rectangle.crosses_diagonal:
            probability.masked_fill_(keys > rows.unsqueeze(-1) + rectangle.offset, 0)
        yield _Block(rows, query_rows, probability)


def _row_blocks(rows: Tensor, elements: int) -> tuple[Tensor, ...]:
    """Split rows that take so many elements each."""
    return rows.split(max(1, _MAX_BLOCK_ELEMENTS[rows.device.type] // elements))


def _shift_row_sums(grad_output: Tensor, output: Tensor, rows: Tensor, shift: Tensor) -> None:
    """Move ``output`` along ``grad_output`` so that rowsum(grad_output * output) grows by a shift.

    A row whose gradient is zero, or nothing beside its shift, has no direction to move along; it
    is given a gradient along the first channel, too small to matter in the results.

    Args:
        grad_output: ``[h, n, d]``, changed in place.
        output: ``[h, n, d]``, changed in place.
        rows: int64 ``[rows]`` to shift.
        shift: ``[h, rows]``.
    """
    heads, _, size = output.shape
    blocks = _row_blocks(rows, heads * size)
    for of_block, shift_of_block in zip(blocks, shift.split(len(blocks[0]), 1), strict=True):
        _shift_block(grad_output, output, of_block, shift_of_block)


def _shift_block(grad_output: Tensor, output: Tensor, rows: Tensor, shift: Tensor) -> None:
    dtype = shift.dtype
    gradient = _take(grad_output, rows).to(dtype)
    low, high = gradient.aminmax(dim=-1)
    peak = torch.maximum(high, -low)
    floor = shift.abs() * _SMALLEST_GRADIENT
    first = gradient[..., 0]
    # Away from zero, so that what the channel holds cannot cancel it.
    first = torch.where(peak < floor, first + floor.copysign(first), first).to(grad_output.dtype)
    grad_output[..., 0].transpose(0, 1).index_copy_(0, rows, first.transpose(0, 1))
    gradient[..., 0] = first
    # Squares of small gradients would underflow, so the direction is scaled by its largest entry.
    # The bounds below only matter where gradient and shift are both zero, and nothing moves.
    peak = torch.maximum(peak, first.to(dtype).abs()).clamp_min(torch.finfo(dtype).tiny)
    direction = gradient.div_(peak.unsqueeze(-1))
    square = torch.linalg.vector_norm(direction, dim=-1).square().clamp_min(1)
    step = (shift / (peak * square)).unsqueeze(-1)
    moved = torch.addcmul(_take(output, rows).to(dtype), step, direction)
    output.transpose(0, 1).index_copy_(0, rows, moved.to(output.dtype).transpose(0, 1))


def _add_rectangle(
    grad_query: Tensor,
    grad_key: Tensor,
    key: Tensor,
    rectangle: Rectangle,
    blocks: Iterator[_Block],
    weight: Tensor,
) -> None:
    """Add what P_ij * weight of dS on a rectangle gives the query and key gradients, in place."""
    key_columns = _take(key, rectangle.keys).to(weight.dtype) * weight
    grad_columns = torch.zeros_like(key_columns)
    for rows, query_rows, probability in blocks:
        by_key_head = _by_key_head(probability, key)
        grad_rows = (by_key_head @ key_columns).view(grad_query.shape[0], len(rows), -1)
        grad_rows = grad_rows.to(grad_query.dtype).transpose(0, 1)
        grad_query.transpose(0, 1).index_add_(0, rows, grad_rows)
        grad_columns += by_key_head.transpose(-1, -2) @ query_rows
    grad_columns *= weight
    grad_key.index_add_(1, rectangle.keys, grad_columns.to(grad_key.dtype))


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """Copy rows of ``[h, n, d]``.

    Heads of a token lie together, as in megatron-core's ``[s, b, h, d]``; PyTorch copies rows of
    memory many times faster than rows of a permuted view.
    """
    return x.transpose(0, 1).index_select(0, rows).transpose(0, 1)


def _by_key_head(by_query_head: Tensor, key: Tensor) -> Tensor:
    """Fold ``[h, rows, x]`` into ``[g, h / g * rows, x]``: query heads that share a key head."""
    return by_query_head.reshape(key.shape[0], -1, by_query_head.shape[-1])


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
