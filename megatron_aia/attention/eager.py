"""Attention with every map in memory, by plain autograd: the reference, in any precision."""

import torch
from torch import Tensor

from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.runtime.device import send


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention inside each sample, and the attention mass of each term.

    Args:
        query: ``[b, h, held, d]``, the heads and tokens of this rank; ``held`` is s, but for
            context parallelism.
        key: ``[b, g, s, d]`` with h a multiple of g; query head i uses key head i // (h / g).
        value: as ``key``.
        layout: samples and terms of the micro-batch.
        scale: factor of the scores.

    Returns:
        The output ``[b, h, held, d]``, zero in padding; and for each term the probability summed
        over heads, queries and keys (the triple sum of Eq. 1), ``[n]``, float32 (float64 for
        float64 inputs). Both are differentiable.
    """
    probability = _probability(query, key, layout, scale)
    b, h, held, d = query.shape
    g, s = key.shape[1:3]
    weights = probability.to(value.dtype).view(b, g, h // g, held, s)
    output = (weights @ value.unsqueeze(2)).view(b, h, held, d)
    sums = [probability.new_zeros(()) for _ in range(layout.num_terms)]
    for piece, of_piece in zip(layout.pieces, layout.rectangles, strict=True):
        of_sample = piece.of_rows(probability)[0, :, :, piece.keys]
        for rectangle in of_piece:
            rows, keys = (
                send(torch.from_numpy(positions), query.device)
                for positions in (rectangle.rows, rectangle.keys)
            )
            part = of_sample.index_select(1, rows).index_select(2, keys).sum()
            sums[rectangle.term] = sums[rectangle.term] + part
    return output, torch.stack(sums) if sums else probability.new_zeros(0)


def _probability(query: Tensor, key: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
    """Softmax ``[b, h, held, s]``, at least float32; rows of padding are zero."""
    b, h, held, d = query.shape
    g, s = key.shape[1:3]
    dtype = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(dtype).view(b, g, h // g, held, d)
    scores = (grouped @ key.to(dtype).unsqueeze(2).transpose(-1, -2)).view(b, h, held, s) * scale
    hidden = ~layout.attention_mask(query.device).unsqueeze(1)
    # A padding row sees nothing. A finite filler keeps its softmax, and so its gradient, finite.
    probability = scores.masked_fill(hidden, torch.finfo(dtype).min).softmax(dim=-1)
    return probability.masked_fill(hidden, 0)
