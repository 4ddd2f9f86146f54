"""How the tokens of a sequence are dealt to context-parallel ranks: the one place that knows the
order.

A sequence is cut into 2 * size chunks, and rank r holds chunks r and 2 * size - 1 - r ("zig-zag",
as in megatron-core). Under the causal mask a chunk costs the more the later it stands; one early
and one late chunk give every rank the same work.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def slices_of_rank(length: int, rank: int, size: int) -> tuple[slice, ...]:
    """Return the positions of a sequence of ``length`` tokens that a rank holds, in ascending
    order.

    ``length`` must be a multiple of 2 * size; a single rank holds the whole sequence in one slice.
    """
    if size == 1:
        return (slice(0, length),)
    assert length % (2 * size) == 0, (length, size)
    chunk = length // (2 * size)
    return tuple(slice(n * chunk, (n + 1) * chunk) for n in (rank, 2 * size - 1 - rank))


def positions_of_rank(
    positions: Tensor, length: int, rank: int, size: int
) -> tuple[Tensor, Tensor]:
    """Find which of some places of whole sequences a rank holds.

    Args:
        positions: int64 ``[n]``, places in the flattened ``[b, length]`` of whole sequences.
        length: tokens of a whole sequence.
        rank: of ``size`` ranks.
        size: number of ranks that share a sequence.

    Returns:
        The numbers of the held ones, int64 ``[m]``, and their places in the flattened
        ``[b, length / size]`` that the rank holds.
    """
    if size == 1:
        return torch.arange(len(positions)), positions
    assert length % (2 * size) == 0, (length, size)
    chunk = length // (2 * size)
    sequence, place = positions // length, positions % length
    number = place // chunk
    is_late = number == 2 * size - 1 - rank
    held = ((number == rank) | is_late).nonzero().flatten()
    start = torch.where(is_late[held], chunk, 0)
    return held, sequence[held] * (2 * chunk) + start + place[held] % chunk


def slice_tensor(whole: Tensor, rank: int, size: int, dim: int) -> Tensor:
    """Return the part of ``whole`` that a rank holds; ``dim`` counts the tokens of a sequence."""
    if size == 1:
        return whole
    slices = slices_of_rank(whole.shape[dim], rank, size)
    return torch.cat([whole.narrow(dim, s.start, s.stop - s.start) for s in slices], dim)


def join_slices(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Return the whole of which ``parts[r]`` is what rank r holds: ``slice_tensor`` undone."""
    if len(parts) == 1:
        return parts[0]
    early, late = zip(*(part.chunk(2, dim) for part in parts), strict=True)
    return torch.cat([*early, *reversed(late)], dim)
