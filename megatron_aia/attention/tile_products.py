"""P on the tiles of a micro-batch: its masses, and what it adds to the gradients.

On CUDA the products take bfloat16 and add up in float32, on tensor cores: as exact as the flash
kernel, which does the same. A CPU has no such product and multiplies in float32.
"""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from megatron_aia.attention.tiles import TileBlock, TilePlan


def measure(
    query: Tensor, key: Tensor, lses: Sequence[Tensor], plan: Optional[TilePlan], scale: float
) -> tuple[Optional[Tensor], list[Tensor]]:
    """Return the sums of the terms, None without tiles; and of each block its -lse and masses."""
    if plan is None:
        return None, []
    flat = [lse.flatten() for lse in lses]
    flat_lse = flat[0] if len(flat) == 1 else torch.cat(flat)
    sums, saved = None, []
    for tiles in plan.blocks:
        # Negative, as a product can add it.
        lse = flat_lse.index_select(0, tiles.lse).neg_()
        mass = Probability(query, key, tiles, lse, scale).values.sum(-1)
        of_tiles = mass.view(len(tiles.term), -1).sum(1)
        if sums is None:
            sums = tiles.is_of_term.mv(of_tiles)
        else:
            sums.addmv_(tiles.is_of_term, of_tiles)
        saved += [lse, mass]
    return sums, saved


class Probability:
    """P on tiles, ``[T * g, R * h/g, C]`` in the precision of the sums, 0 where it is barred."""

    def __init__(
        self, query: Tensor, key: Tensor, tiles: TileBlock, negative_lse: Tensor, scale: float
    ) -> None:
        count, groups, size, group, width = tiles.shape
        self.tiles = tiles
        rows = _for_products(_by_token(query).index_select(0, tiles.queries))
        keys = _for_products(_by_token(key).index_select(0, tiles.keys))
        self.query = rows.view(count * groups, size * group, -1)
        self.key = keys.view(count * groups, width, -1)
        self.values = _scores(self.query, self.key, negative_lse, scale)
        if tiles.barred is not None:
            self.values.view(tiles.shape).masked_fill_(tiles.barred, -torch.inf)
        self.values.exp_()


def _scores(query: Tensor, key: Tensor, negative_lse: Tensor, scale: float) -> Tensor:
    """Return scale q k^T - lse, not rounded to bfloat16: as exact as the log-sum-exp it meets."""
    lse = negative_lse.view(*query.shape[:2], 1)
    columns = key.transpose(-1, -2)
    if query.dtype == lse.dtype:
        return torch.baddbmm(lse, query, columns, alpha=scale)
    scores = _product(query, columns)
    return torch.add(lse, scores, alpha=scale, out=scores)


def _for_products(x: Tensor) -> Tensor:
    """Return what is multiplied: a CPU has no product of bfloat16 that is added up in float32."""
    return x.to(accumulation_dtype(x)) if x.device.type == "cpu" else x


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply in the given precision and add up in float32 at least."""
    if left.dtype == accumulation_dtype(left):
        return torch.bmm(left, right)
    return torch.bmm(left, right, out_dtype=torch.float32)


def add_rectangles(
    gradients: Sequence[Tensor],
    probability: Probability,
    grad_sums: Tensor,
    scale: float,
    plan: TilePlan,
) -> None:
    """Add what P_ij g_i of dS on the tiles gives the query and key gradients, in place.

    Args:
        gradients: of query and key, and more.
        probability: overwritten.
        grad_sums: g of each tile ``[T]``.
        scale: factor of the scores.
        plan: of the tiles.
    """
    tiles, values = probability.tiles, probability.values.view(len(grad_sums), -1)
    query, key = probability.query, probability.key
    # Tensor cores multiply bfloat16; made in one pass.
    d_scores = (
        values if values.dtype == query.dtype else values.new_empty(values.shape, dtype=query.dtype)
    )
    torch.mul(values, grad_sums.unsqueeze(1), out=d_scores)
    d_scores = d_scores.view_as(probability.values)
    _add_rows(gradients[0], tiles.queries, d_scores, key, scale, plan.repeats_rows)
    d_columns = d_scores.transpose(-1, -2)
    _add_rows(gradients[1], tiles.keys, d_columns, query, scale, plan.repeats_keys)


def _add_rows(
    gradient: Tensor, index: Tensor, d_scores: Tensor, other: Tensor, scale: float, repeats: bool
) -> None:
    """Add the rows of a product to those of a gradient; several to one row without rounding."""
    rows = _by_token(gradient)
    dtype = accumulation_dtype(rows)
    if rows.dtype != dtype and (repeats or d_scores.dtype == dtype):
        total = rows.new_zeros(rows.shape, dtype=dtype)
        added = _product(d_scores, other).flatten(0, 1)
        rows.add_(total.index_add_(0, index, added, alpha=scale))
    else:
        rows.index_add_(0, index, torch.bmm(d_scores, other).flatten(0, 1), alpha=scale)


def _by_token(x: Tensor) -> Tensor:
    """View ``[b, h, n, d]`` as ``[n * b * h, d]``: tokens come first in memory."""
    return x.permute(2, 0, 1, 3).reshape(-1, x.shape[-1])


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Return the precision of sums over ``x``: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
