"""Logits of chosen ids, where every tensor-parallel rank holds some columns of a head."""

import torch
import torch.distributed as dist
from torch import Tensor


def columns_of_rank(ids: range, width: int, rank: int) -> slice:
    """Return which of the ``width`` columns of a rank belong to ``ids``, maybe none."""
    start = min(max(ids.start - rank * width, 0), width)
    stop = min(max(ids.stop - rank * width, start), width)
    return slice(start, stop)


def gather_columns(local: Tensor, ids: range, width: int, group: dist.ProcessGroup) -> Tensor:
    """Return the logits of ``ids`` on every rank of the group.

    Args:
        local: ``[b, n]``, the columns that ``columns_of_rank`` names.
        ids: columns of the whole head.
        width: columns of the head on each rank.
        group: of the ranks that share the head.

    Returns:
        float32 ``[b, len(ids)]``.
    """
    local = local.float()
    size = group.size()
    if size == 1:
        return local
    held = [columns_of_rank(ids, width, rank) for rank in range(size)]
    counts = [part.stop - part.start for part in held]
    padded = torch.nn.functional.pad(local, (0, max(counts) - local.shape[1])).contiguous()
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:, :n] for part, n in zip(parts, counts, strict=True)], dim=1)
