"""Exact intensities from inside the attention kernel, for queries and keys of any shape.

The forward carries the row masses beside the softmax. The backward adds their gradient g_i where
the pair counts, and lowers each row by rowsum(dO * O) + g_i s_i:

    dS_ij = P_ij [dO_i . v_j + g_i [i in Q, j in K] - (D_i + g_i s_i)].

There is no second pass over the keys, so the cost does not depend on how many there are. The
kernels are written in Triton; they run on a GPU, or interpreted on a CPU where the environment has
TRITON_INTERPRET=1, for tests.
"""

import math
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from megatron_aia.attention.layout import AttentionLayout

_LOG2_E = math.log2(math.e)

_MAX_TERMS = 31
"""Of a sample: each has a bit of an int32."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention inside each sample, and the attention mass of each term.

    Arguments and results are those of :func:`megatron_aia.attention.eager.attend`. Inputs are
    float32, float16 or bfloat16, with a head size of at most 128; a row belongs to one term.
    """
    output, sums = _FusedAttention.apply(query, key, value, layout, scale)
    return output, sums


class _Codes(NamedTuple):
    """What the kernels know of samples and terms, int32; rows are this rank's, keys are all."""

    first: Tensor
    """``[b, rows]``: the first key that a row sees; in padding, beyond the last."""
    last: Tensor
    """``[b, rows]``: the last key that a row sees, itself; -1 in padding."""
    start: Tensor
    """``[b, keys]``: rows before this one do not see the key."""
    stop: Tensor
    """``[b, keys]``: rows from here on do not see it; 0 in padding."""
    row_bits: Tensor
    """``[b, rows]``: the bit of the row's term in its sample; 0 without one."""
    key_bits: Tensor
    """``[b, keys]``: the bits of the terms that this is a key of."""
    term: Tensor
    """int64 ``[b, rows]``: number of the row's term in the micro-batch, or the number of terms."""


def _codes(layout: AttentionLayout, device: torch.device) -> _Codes:
    """Return the codes of a micro-batch, made once for all layers."""
    cache_key = ("fused", device)
    if cache_key not in layout.cache:
        layout.cache[cache_key] = _Codes(*(torch.from_numpy(x).to(device) for x in _arrays(layout)))
    codes: _Codes = layout.cache[cache_key]
    return codes


def _arrays(layout: AttentionLayout) -> tuple[np.ndarray, ...]:
    length = layout.seq_length
    shape = (layout.batch_size, length)
    first, last = np.full(shape, length, np.int32), np.full(shape, -1, np.int32)
    stop, row_bits, key_bits = (np.zeros(shape, np.int32) for _ in range(3))
    term_of_row = np.full(shape, layout.num_terms, np.int64)
    held = np.concatenate([np.arange(part.start, part.stop) for part in layout.held])
    # How many rows of this rank stand before a position of the whole sequence.
    before = np.searchsorted(held, np.arange(length + 1)).astype(np.int32)
    number = 0
    for segment in layout.segments:
        b, inside = segment.batch_index, slice(segment.start, segment.stop)
        first[b, inside] = segment.start
        last[b, inside] = np.arange(segment.start, segment.stop)
        stop[b, inside] = before[segment.stop]
        assert len(segment.terms) <= _MAX_TERMS
        for bit, term in enumerate(segment.terms):
            assert not row_bits[b, term.queries].any(), "a row belongs to one term"
            row_bits[b, term.queries] = 1 << bit
            key_bits[b, term.keys] |= 1 << bit
            term_of_row[b, term.queries] = number
            number += 1
    start = np.broadcast_to(before[:-1], shape).copy()
    of_rows = [np.ascontiguousarray(x[:, held]) for x in (first, last, row_bits, term_of_row)]
    return of_rows[0], of_rows[1], start, stop, of_rows[2], key_bits, of_rows[3]


class Tile(NamedTuple):
    """Shape of one program of a kernel."""

    rows: int
    keys: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """Tiles of the kernels that multiply matrices."""

    forward: Tile
    query: Tile
    key_value: Tile


def tiles(dtype: torch.dtype) -> Tiles:
    """Return tiles that fit the registers of compute capability 9.0 without spilling.

    ``tests/unit/test_fused_compiles.py`` compiles them and counts. In float32 no tensor core is
    used and registers spill whatever the tile: what this saves there is memory, not time.
    """
    if dtype == torch.float32:
        small = Tile(32, 32, 4, 1)
        return Tiles(small, small, small)
    return Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(128, 64, 8, 1))


def constants(dtype: torch.dtype, head_size: int, tile: Tile) -> dict[str, Any]:
    """Return what a kernel is compiled for."""
    return {
        "HEAD": head_size,
        "PADDED": max(16, 1 << (head_size - 1).bit_length()),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        # Not TF32: a sum of probabilities is meant to be exact in float32.
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


_SHIFT_ROWS = 32


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        from megatron_aia.attention import fused_kernels

        codes = _codes(layout, query.device)
        query, key, value = (_with_unit_stride(x) for x in (query, key, value))
        b, h, s, d = query.shape
        output = _new(query)
        lse, masses = (query.new_empty(b, h, s, dtype=torch.float32) for _ in range(2))
        tile = tiles(query.dtype).forward
        fused_kernels.forward[-(-s // tile.rows), b * h](
            *(query, key, value, codes.first, codes.last, codes.row_bits, codes.key_bits),
            *(output, lse, masses, *_strides(query, key, value, output)),
            *(h, h // key.shape[1], s, key.shape[2], scale * _LOG2_E),
            **constants(query.dtype, d, tile),
        )
        by_row = masses.sum(1).flatten()
        sums = by_row.new_zeros(layout.num_terms + 1).index_add_(0, codes.term.flatten(), by_row)
        ctx.save_for_backward(query, key, value, output, lse, masses)
        ctx.codes = codes
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return output, sums[: layout.num_terms]

    @staticmethod
    def backward(
        ctx: Any, grad_output: Optional[Tensor], grad_sums: Optional[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, lse, masses = ctx.saved_tensors
        codes: _Codes = ctx.codes
        grad_output = torch.zeros_like(output) if grad_output is None else grad_output
        grad_output = _with_unit_stride(grad_output)
        if grad_sums is None:
            grad_mass = torch.zeros_like(codes.first, dtype=torch.float32)
        else:
            grad_mass = torch.cat([grad_sums, grad_sums.new_zeros(1)])[codes.term]
        shift = _row_shifts(output, grad_output, masses, grad_mass)
        per_row = (codes.row_bits, codes.key_bits, lse, shift, grad_mass)
        gradients = _backward(query, key, value, grad_output, codes, per_row, ctx.scale)
        return *gradients, None, None


def _row_shifts(output: Tensor, grad_output: Tensor, masses: Tensor, grad_mass: Tensor) -> Tensor:
    """Return rowsum(dO * O) + g s, ``[b, h, s]``."""
    from megatron_aia.attention import fused_kernels

    b, h, s, d = output.shape
    shift = torch.empty_like(masses)
    shape = constants(output.dtype, d, Tile(_SHIFT_ROWS, 0, 4, 1))
    fused_kernels.row_shifts[-(-s // _SHIFT_ROWS), b * h](
        *(output, grad_output, masses, grad_mass, shift),
        *(*_strides(output, grad_output), h, s),
        **{name: shape[name] for name in ("HEAD", "PADDED", "ROWS", "num_warps")},
    )
    return shift


def _backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_output: Tensor,
    codes: _Codes,
    per_row: tuple[Tensor, ...],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    from megatron_aia.attention import fused_kernels

    b, h, s, d = query.shape
    g, num_keys = key.shape[1:3]
    grad_query, grad_key, grad_value = (_new(x) for x in (query, key, value))
    inputs = (query, key, value, grad_output)
    numbers = (h, h // g, s, num_keys, scale, scale * _LOG2_E)
    every = tiles(query.dtype)
    fused_kernels.backward_key_value[-(-num_keys // every.key_value.keys), b * g](
        *(
            *inputs,
            codes.first,
            codes.last,
            codes.start,
            codes.stop,
            *per_row,
            grad_key,
            grad_value,
        ),
        *(*_strides(*inputs, grad_key, grad_value), *numbers),
        **constants(query.dtype, d, every.key_value),
    )
    fused_kernels.backward_query[-(-s // every.query.rows), b * h](
        *(*inputs, codes.first, codes.last, *per_row, grad_query),
        *(*_strides(*inputs, grad_query), *numbers),
        **constants(query.dtype, d, every.query),
    )
    return grad_query, grad_key, grad_value


def _with_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _new(like: Tensor) -> Tensor:
    """Return an empty ``[b, heads, s, d]`` stored as megatron-core's ``[s, b, ...]``."""
    b, heads, s, d = like.shape
    return like.new_empty(s, b, heads, d).permute(1, 2, 0, 3)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]
