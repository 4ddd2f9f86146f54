"""Exact intensities beside a flash kernel, without ever holding an n x n map.

With S the scaled scores, LSE their log-sum-exp, P = exp(S - LSE), D = rowsum(dO * O), and for a
term with rows Q and keys K the row masses s_i = sum_{j in K} P_ij, whose loss gradient is g_i,

    dS_ij = P_ij [dO_i . v_j - (D_i + g_i s_i)] + P_ij g_i [i in Q, j in K].

The last summand needs P only on Q x K, a small rectangle. The shift of D is put into a flash
backward that knows nothing of it: the kernel reads ``out`` only to form D, so it is called with an
``out`` moved along dO until rowsum(dO * out) = D + g s.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from megatron_aia.attention import flash_ops
from megatron_aia.attention.layout import AttentionLayout, Rectangle

_MAX_BLOCK_ELEMENTS = 1 << 26
"""Elements of P (heads x rows x keys) held at a time: 256 MiB in float32."""

_SMALLEST_GRADIENT = 2.0**-40
"""Of a row of dO, relative to the row's shift of D: far below rounding, far above underflow."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention inside each sample, and the attention mass of each term.

    Arguments and results are those of :func:`megatron_aia.attention.dense.attend`. On CUDA the
    inputs must be bfloat16 with a head size that is a multiple of 8.
    """
    output, sums = _RectangleAttention.apply(query, key, value, layout, scale)
    return output, sums


class _RectangleAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        output = torch.zeros_like(query)
        sums = query.new_zeros(layout.num_terms, dtype=_accumulation_dtype(query))
        lses, masses, ctx.extras = [], [], []
        rectangles = layout.rectangles(query.device)
        for piece, of_piece in zip(layout.pieces, rectangles, strict=True):
            q, k, v = piece.of_rows(query), piece.of_keys(key), piece.of_keys(value)
            piece_output, lse, extras = flash_ops.forward(q, k, v, scale)
            piece.of_rows(output).copy_(piece_output)
            lses.append(lse)
            ctx.extras.append(extras)
            for rectangle in of_piece:
                blocks = _probability_blocks(q[0], k[0], lse[0], rectangle, scale)
                mass = torch.cat([block.probability.sum(-1) for block in blocks], dim=1)
                sums[rectangle.term] += mass.sum()
                masses.append(mass)
        ctx.save_for_backward(query, key, value, output, *lses, *masses)
        ctx.layout = layout
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return output, sums

    @staticmethod
    def backward(
        ctx: Any, grad_output: Optional[Tensor], grad_sums: Optional[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, *saved = ctx.saved_tensors
        pieces = ctx.layout.pieces
        lses, masses = saved[: len(pieces)], iter(saved[len(pieces) :])
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (query, key, value))
        rectangles = ctx.layout.rectangles(query.device)
        for i, piece in enumerate(pieces):
            weighted = [] if grad_sums is None else [(r, grad_sums[r.term]) for r in rectangles[i]]
            q, out, d_out = (piece.of_rows(x) for x in (query, output, grad_output))
            k, v = piece.of_keys(key), piece.of_keys(value)
            if weighted:
                d_out, out = d_out.clone(), out.clone()
            for rectangle, grad_sum in weighted:
                shift = grad_sum * next(masses)
                _shift_row_sums(d_out[0], out[0], rectangle.rows, shift)
            d_q, d_k, d_v = flash_ops.backward(
                d_out, q, k, v, out, lses[i], ctx.extras[i], ctx.scale
            )
            for rectangle, grad_sum in weighted:
                blocks = _probability_blocks(q[0], k[0], lses[i][0], rectangle, ctx.scale)
                _add_rectangle(d_q[0], d_k[0], k[0], rectangle, blocks, grad_sum * ctx.scale)
            piece.of_rows(grad_query).copy_(d_q)
            piece.of_keys(grad_key).add_(d_k)  # two pieces of a sample share its first keys
            piece.of_keys(grad_value).add_(d_v)
        return grad_query, grad_key, grad_value, None, None


class _Block(NamedTuple):
    """Some rows of a rectangle."""

    rows: Tensor
    """int64 ``[rows]``, positions in the piece."""
    query: Tensor
    """``[h, rows, d]``, in the precision of the sums."""
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
    key_columns = key.index_select(1, keys).to(dtype)
    rows_of_block = max(1, _MAX_BLOCK_ELEMENTS // (heads * len(keys)))
    for rows in rectangle.rows.split(rows_of_block):
        query_rows = query.index_select(1, rows).to(dtype)
        scores = _by_key_head(query_rows, key) @ key_columns.transpose(-1, -2)
        scores = scores.view(heads, len(rows), len(keys)).mul_(scale)
        probability = scores.sub_(lse.index_select(1, rows).unsqueeze(-1)).exp_()
        if rectangle.crosses_diagonal:
            probability.masked_fill_(keys > rows.unsqueeze(-1) + rectangle.offset, 0)
        yield _Block(rows, query_rows, probability)


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
    dtype = shift.dtype
    gradient = grad_output.index_select(1, rows).to(dtype)
    floor = shift.abs() * _SMALLEST_GRADIENT
    is_tiny = gradient.abs().amax(-1) < floor
    along_first = torch.zeros_like(gradient)
    along_first[..., 0] = floor
    gradient = torch.where(is_tiny.unsqueeze(-1), along_first, gradient).to(grad_output.dtype)
    grad_output.index_copy_(1, rows, gradient)
    # Squares of small gradients would underflow, so the direction is scaled by its largest entry.
    # The bounds below only matter where gradient and shift are both zero, and nothing moves.
    gradient = gradient.to(dtype)
    peak = gradient.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    direction = gradient / peak
    square = direction.square().sum(-1, keepdim=True).clamp_min(1)
    moved = output.index_select(1, rows) + shift.unsqueeze(-1) / (peak * square) * direction
    output.index_copy_(1, rows, moved.to(output.dtype))


def _add_rectangle(
    grad_query: Tensor,
    grad_key: Tensor,
    key: Tensor,
    rectangle: Rectangle,
    blocks: Iterator[_Block],
    weight: Tensor,
) -> None:
    """Add what P_ij * weight of dS on a rectangle gives the query and key gradients, in place."""
    key_columns = key.index_select(1, rectangle.keys).to(weight.dtype)
    grad_columns = torch.zeros_like(key_columns)
    for rows, query_rows, probability in blocks:
        grad_scores = _by_key_head(probability.mul_(weight), key)
        grad_rows = (grad_scores @ key_columns).view_as(query_rows)
        grad_query.index_add_(1, rows, grad_rows.to(grad_query.dtype))
        grad_columns += grad_scores.transpose(-1, -2) @ _by_key_head(query_rows, key)
    grad_key.index_add_(1, rectangle.keys, grad_columns.to(grad_key.dtype))


def _by_key_head(by_query_head: Tensor, key: Tensor) -> Tensor:
    """Fold ``[h, rows, x]`` into ``[g, h / g * rows, x]``: query heads that share a key head."""
    return by_query_head.reshape(key.shape[0], -1, by_query_head.shape[-1])


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
