"""Attention with every map in memory, by plain autograd: the reference, in any precision."""

import torch
from torch import Tensor

from megatron_aia.attention.layout import AttentionLayout


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention inside each sample, and the attention mass of each term.

    Args:
        query: ``[b, h, s, d]``, the heads of this rank.
        key: ``[b, g, s, d]`` with h a multiple of g; query head i uses key head i // (h / g).
        value: as ``key``.
        layout: samples and terms of the micro-batch.
        scale: factor of the scores.

    Returns:
        The output ``[b, h, s, d]``, zero in padding; and for each term the probability summed over
        heads, rows and keys (the triple sum of Eq. 1), ``[n]``, float32 (float64 for float64
        inputs). Both are differentiable.
    """
    probability = _probability(query, key, layout, scale)
    b, h, s, d = query.shape
    g = key.shape[1]
    weights = probability.to(value.dtype).view(b, g, h // g, s, s)
    output = (weights @ value.unsqueeze(2)).view(b, h, s, d)
    sums = []
    rectangles = layout.rectangles(query.device)
    for segment, of_segment in zip(layout.segments, rectangles, strict=True):
        inside = slice(segment.start, segment.stop)
        of_sample = probability[segment.batch_index, :, inside, inside]
        for rectangle in of_segment:
            rows = of_sample.index_select(1, rectangle.rows)
            sums.append(rows.index_select(2, rectangle.keys).sum())
    return output, torch.stack(sums) if sums else probability.new_zeros(0)


def _probability(query: Tensor, key: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
    """Softmax ``[b, h, s, s]``, at least float32; rows of padding are zero."""
    b, h, s, d = query.shape
    g = key.shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32)
    grouped = query.to(dtype).view(b, g, h // g, s, d)
    scores = (grouped @ key.to(dtype).unsqueeze(2).transpose(-1, -2)).view(b, h, s, s) * scale
    hidden = ~layout.attention_mask(query.device).unsqueeze(1)
    # A padding row sees nothing. A finite filler keeps its softmax, and so its gradient, finite.
    probability = scores.masked_fill(hidden, torch.finfo(dtype).min).softmax(dim=-1)
    return probability.masked_fill(hidden, 0)
