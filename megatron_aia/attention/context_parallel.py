"""Context parallelism: a rank attends from its own tokens to the keys of whole sequences.

Keys and values are gathered, queries stay. With grouped queries keys and values are the small part
(``benchmarks/context_parallel.md`` compares the bytes with a ring's), a rank then sees every key
that an intensity may name, and one log-sum-exp covers a sequence, as the exact methods need it.

Gathered keys and values live until the backward pass; ``--recompute-granularity selective`` drops
them and gathers again.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_aia.runtime.context_parallel_slices import join_slices, slice_tensor

# Renamed in torch 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_keys_values(
    key: Tensor, value: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Gather the keys and values of whole sequences, in the order of their tokens.

    One all-gather; the backward is one reduce-scatter: a token's gradient is the sum of what the
    queries of all ranks give it. No factor of the group's size appears.

    Args:
        key: ``[s / cp, b, g, d]``, the tokens that this rank holds.
        value: as ``key``.
        group: the context-parallel ranks; each must call this.

    Returns:
        Keys and values, each ``[s, b, g, d]``.
    """
    gathered: tuple[Tensor, Tensor] = _GatherKeysValues.apply(key, value, group)
    return gathered


class _GatherKeysValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, key: Tensor, value: Tensor, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor]:
        ctx.group = group
        held = torch.stack((key, value))
        gathered = held.new_empty(2 * group.size(), *key.shape)
        _all_gather(gathered, held, group=group)
        return join_slices(gathered[0::2].unbind(), dim=0), join_slices(
            gathered[1::2].unbind(), dim=0
        )

    @staticmethod
    def backward(ctx: Any, grad_key: Tensor, grad_value: Tensor) -> tuple[Tensor, Tensor, None]:
        size = ctx.group.size()
        parts = torch.stack(
            [
                slice_tensor(gradient, rank, size, dim=0)
                for rank in range(size)
                for gradient in (grad_key, grad_value)
            ]
        )
        own = torch.empty_like(parts[:2])
        _reduce_scatter(own, parts, group=ctx.group)
        return own[0], own[1], None
