"""The rectangles of all terms of a micro-batch as tiles of one shape, laid out once for all layers.

A layer then computes them together, whatever their number: a few large products in place of some
small kernels for each sample. The host lays them out as arrays of tokens; the device multiplies
these by heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor

from megatron_aia.attention.calls import KernelCall
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.pieces import Piece, Rectangle
from megatron_aia.runtime.device import send

_MULTIPLE = 8
"""Of rows and keys of a tile: tensor cores want whole multiples."""


@dataclass(frozen=True)
class Heads:
    """Heads of this rank."""

    queries: int
    """h."""
    keys: int
    """g, of which h is a multiple."""
    size: int
    """Channels d."""


@dataclass(frozen=True)
class TileBlock:
    """T tiles of R rows x C keys. Rows of a tile are ordered by key head, row, head of the group.

    Indices point into tensors that are flat but for their channels. Where a tile is not full they
    point anywhere, and ``barred`` is True.
    """

    queries: Tensor
    """int64 ``[T * g * R * h/g]``, into queries ``[held * b * h, d]``."""
    keys: Tensor
    """int64 ``[T * g * C]``, into keys ``[s * b * g, d]``."""
    lse: Tensor
    """int64, as ``queries``, into the log-sum-exps of all calls, one after the other."""
    barred: Optional[Tensor]
    """bool ``[T, 1, R, 1, C]``: places without a row or a key, or hidden by the causal mask."""
    term: Tensor
    """int64 ``[T]``."""
    is_of_term: Tensor
    """0 or 1 ``[terms, T]``, in the precision of the sums."""
    shape: tuple[int, int, int, int, int]
    """T, g, R, h/g, C."""


@dataclass(frozen=True)
class TilePlan:
    """All tiles of a micro-batch, a bounded number of elements at a time."""

    blocks: tuple[TileBlock, ...]
    repeats_rows: bool
    """Some row is in several tiles, so its gradient is a sum over them."""
    repeats_keys: bool
    """Some key is in several tiles."""


def lay_tiles(
    layout: AttentionLayout,
    calls: Sequence[KernelCall],
    heads: Heads,
    device: torch.device,
    dtype: torch.dtype,
    most_elements: int,
) -> Optional[TilePlan]:
    """Lay the rectangles of a micro-batch out in tiles; None if there are none.

    Args:
        layout: of the micro-batch.
        calls: that attend to it; rows find their log-sum-exp there.
        heads: of this rank.
        device: of the tensors.
        dtype: of the sums.
        most_elements: of scores that are held at a time, over all heads.
    """
    found = [
        (piece, rectangle)
        for piece, of_piece in zip(layout.pieces, layout.rectangles, strict=True)
        for rectangle in of_piece
    ]
    if not found:
        return None
    size = _tile_size([r for _, r in found], heads, most_elements)
    places = _places(calls, heads.queries)
    arrays = [_of_rectangle(*pair, size, layout.batch_size, places) for pair in found]
    whole = _Arrays(*(np.concatenate(parts) for parts in zip(*arrays, strict=True)))
    at_a_time = max(1, most_elements // (heads.queries * size[0] * max(size[1], heads.size)))
    blocks = tuple(
        _send(whole.part(slice(first, first + at_a_time)), heads, layout.num_terms, device, dtype)
        for first in range(0, len(whole.term), at_a_time)
    )
    held = sum(part.stop - part.start for part in layout.held) * layout.batch_size
    return TilePlan(
        blocks,
        repeats_rows=_repeats(whole.rows[whole.is_row], held),
        repeats_keys=_repeats(whole.keys[whole.is_key], layout.seq_length * layout.batch_size),
    )


def _repeats(tokens: np.ndarray, count: int) -> bool:
    return bool(np.bincount(tokens, minlength=count).max() > 1)


def _tile_size(
    rectangles: Sequence[Rectangle], heads: Heads, most_elements: int
) -> tuple[int, int]:
    """Return rows and keys of a tile: of those that hold the rectangles, the least work."""
    rows = np.array([len(rectangle.rows) for rectangle in rectangles])
    keys = np.array([len(rectangle.keys) for rectangle in rectangles])
    group = heads.queries // heads.keys
    best = (float("inf"), (_MULTIPLE, _MULTIPLE))
    for size in _sizes(rows.max()):
        for width in _sizes(keys.max()):
            if heads.queries * size * width > most_elements and size * width > _MULTIPLE**2:
                continue
            count = int((-(-rows // size) * -(-keys // width)).sum())
            # Scores are written and read about as often as the rows and keys they are made of.
            work = count * (size * width * group + (size * group + width) * heads.size)
            best = min(best, (work, (size, width)))
    return best[1]


def _sizes(longest: int) -> list[int]:
    """Return powers of two, and what holds the longest rectangle."""
    whole = -(-int(longest) // _MULTIPLE) * _MULTIPLE
    return sorted({whole, *(2**k for k in range(3, 12) if 2**k < whole)})


def _places(calls: Sequence[KernelCall], num_heads: int) -> dict[int, tuple[int, int]]:
    """Return for each piece where its log-sum-exps begin, and the step from head to head."""
    places, base = {}, 0
    for call in calls:
        for piece in call.pieces:
            entry, first = call.place_of(piece)
            places[id(piece)] = (base + entry * num_heads * call.length + first, call.length)
        base += call.batch_size * num_heads * call.length
    return places


class _Arrays(NamedTuple):
    """TileBlock on the host, T of them; see :class:`TileBlock`."""

    term: np.ndarray
    rows: np.ndarray
    """Token of each row ``[T, R]``."""
    lse: np.ndarray
    """Of each row, for head 0, ``[T, R]``."""
    lse_step: np.ndarray
    """From a head to the next ``[T]``."""
    is_row: np.ndarray
    row_position: np.ndarray
    """In the sample ``[T, R]``."""
    keys: np.ndarray
    """``[T, C]``."""
    is_key: np.ndarray
    key_position: np.ndarray

    def part(self, tiles: slice) -> "_Arrays":
        return _Arrays(*(array[tiles] for array in self))


def _of_rectangle(
    piece: Piece,
    rectangle: Rectangle,
    size: tuple[int, int],
    sequences: int,
    places: dict[int, tuple[int, int]],
) -> _Arrays:
    rows, is_row = _cut(rectangle.rows, size[0])
    keys, is_key = _cut(rectangle.keys, size[1])
    first, step = places[id(piece)]
    # Every block of rows meets every block of keys.
    of_rows, of_keys = (x.flatten() for x in np.indices((len(rows), len(keys))))

    def token(position: np.ndarray, start: int) -> np.ndarray:
        return (position + start) * sequences + piece.batch_index

    count = len(of_rows)
    return _Arrays(
        term=np.full(count, rectangle.term),
        rows=token(rows, piece.rows.start)[of_rows],
        lse=(rows + first)[of_rows],
        lse_step=np.full(count, step),
        is_row=is_row[of_rows],
        row_position=(rows + piece.offset)[of_rows],
        keys=token(keys, piece.keys.start)[of_keys],
        is_key=is_key[of_keys],
        key_position=keys[of_keys],
    )


def _cut(positions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut ascending positions into blocks; the last repeats some of them, marked False."""
    count = -(-len(positions) // size)
    cut = np.resize(positions, (count, size))
    inside = np.arange(count * size).reshape(count, size) < len(positions)
    return cut, inside


def _send(
    arrays: _Arrays, heads: Heads, num_terms: int, device: torch.device, dtype: torch.dtype
) -> TileBlock:
    group = heads.queries // heads.keys
    count, size = arrays.rows.shape
    is_place = arrays.is_row[:, :, None] & arrays.is_key[:, None, :]
    sees = arrays.row_position[:, :, None] >= arrays.key_position[:, None, :]
    barred = ~(is_place & sees)
    is_of_term = np.arange(num_terms)[:, None] == arrays.term

    def sent(array: np.ndarray) -> Tensor:
        return send(torch.from_numpy(np.ascontiguousarray(array)), device)

    head = torch.arange(heads.queries, device=device).view(1, heads.keys, 1, group)
    key_head = torch.arange(heads.keys, device=device).view(1, heads.keys, 1)
    rows, lse, step = (sent(x) for x in (arrays.rows, arrays.lse, arrays.lse_step))
    return TileBlock(
        queries=(rows.view(count, 1, size, 1) * heads.queries + head).flatten(),
        keys=(sent(arrays.keys).unsqueeze(1) * heads.keys + key_head).flatten(),
        lse=(lse.view(count, 1, size, 1) + step.view(count, 1, 1, 1) * head).flatten(),
        barred=sent(barred)[:, None, :, None] if barred.any() else None,
        term=sent(arrays.term),
        is_of_term=sent(is_of_term).to(dtype),
        shape=(count, heads.keys, size, group, arrays.keys.shape[1]),
    )
