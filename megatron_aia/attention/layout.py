"""Where the samples and terms of a micro-batch lie, as index tensors every layer shares."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from megatron_aia.aia.roles import Segment, without_terms
from megatron_aia.attention.pieces import Piece, Strip, cut_pieces, lay_strips


@dataclass(frozen=True)
class Rectangle:
    """Queries x keys of one term in one piece, in its positions: part of what Eq. 1 sums."""

    term: int
    """Number of the term in the micro-batch."""
    rows: Tensor
    """int64 ``[rows]``, ascending, distinct."""
    keys: Tensor
    """int64 ``[keys]``, ascending, distinct."""
    crosses_diagonal: bool
    """Some key stands after some row, so the causal mask cuts into the rectangle."""
    offset: int
    """Of the piece: its row i stands where its key ``offset + i`` does."""


class AttentionLayout:
    """Samples of ``batch_size`` sequences of ``seq_length`` tokens; built once a micro-batch.

    Tensors are made on first use on a device and kept. A causal mask of a rectangle is not kept:
    it follows from the indices, and few rectangles need one.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        seq_length: int,
        batch_size: int,
        held: Optional[Sequence[slice]] = None,
    ) -> None:
        """Segments must lie inside the sequences without overlap.

        ``held`` are the positions of a sequence whose queries this rank has, ascending; None means
        all.
        The keys are always those of the whole sequence.
        """
        for segment in segments:
            assert 0 <= segment.start < segment.stop <= seq_length, segment
            assert 0 <= segment.batch_index < batch_size, segment
        self.segments = tuple(segments)
        self.seq_length = seq_length
        self.batch_size = batch_size
        self.num_terms = sum(len(segment.terms) for segment in segments)
        self.held = (slice(0, seq_length),) if held is None else tuple(held)
        self.pieces = tuple(cut_pieces(self.segments, self.held))
        self.cache: dict[Hashable, Any] = {}
        """What a method derives from the samples and terms, for all layers."""
        self._strips: dict[bool, tuple[Strip, ...]] = {}
        self._rectangles: dict[torch.device, tuple[tuple[Rectangle, ...], ...]] = {}
        self._mask: dict[torch.device, Tensor] = {}

    def strips(self, joined: bool) -> tuple[Strip, ...]:
        """Return what kernels are called for: each piece, or if ``joined`` as few as possible."""
        if joined not in self._strips:
            self._strips[joined] = tuple(lay_strips(self.pieces, joined))
        return self._strips[joined]

    def is_one_strip(self, joined: bool) -> bool:
        """Whether one strip fills the whole micro-batch, and this rank holds all of it."""
        whole = slice(0, self.seq_length)
        strips = [(strip.rows, strip.keys) for strip in self.strips(joined)]
        return self.batch_size == 1 and strips == [(whole, whole)]

    def without_terms(self) -> "AttentionLayout":
        """Return the same samples with nothing to measure."""
        segments = without_terms(self.segments)
        return AttentionLayout(segments, self.seq_length, self.batch_size, self.held)

    def rectangles(self, device: torch.device) -> tuple[tuple[Rectangle, ...], ...]:
        """Return the rectangles of each piece, on ``device``."""
        if device not in self._rectangles:
            self._rectangles[device] = tuple(
                tuple(_rectangles(piece, device)) for piece in self.pieces
            )
        return self._rectangles[device]

    def attention_mask(self, device: torch.device) -> Tensor:
        """Return bool ``[b, held tokens, s]``: query i (dim 1) sees key j. The dense method's."""
        if device not in self._mask:
            mask = torch.zeros(
                (self.batch_size, self.seq_length, self.seq_length), dtype=torch.bool
            )
            for segment in self.segments:
                inside = slice(segment.start, segment.stop)
                mask[segment.batch_index, inside, inside] = True
            mask = mask.tril()
            self._mask[device] = torch.cat([mask[:, rows] for rows in self.held], 1).to(device)
        return self._mask[device]


def _rectangles(piece: Piece, device: torch.device) -> Iterator[Rectangle]:
    """Yield what of each term lies in the piece, where something does."""
    first, stop = piece.keys.start + piece.offset, piece.keys.stop

    def indices(positions: np.ndarray, start: int) -> Tensor:
        return torch.from_numpy(positions - start).to(device)

    for number, term in piece.terms:
        rows = term.queries[(term.queries >= first) & (term.queries < stop)]
        keys = term.keys[term.keys < stop]
        if len(rows) and len(keys):
            crosses = bool(keys[-1] > rows[0])
            keys_of_piece = indices(keys, piece.keys.start)
            yield Rectangle(number, indices(rows, first), keys_of_piece, crosses, piece.offset)
