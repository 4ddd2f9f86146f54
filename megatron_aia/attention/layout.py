"""Where the samples and terms of a micro-batch lie, as index tensors every layer shares."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from megatron_aia.aia.roles import Segment, Term, without_terms


@dataclass(frozen=True)
class Piece:
    """Consecutive queries of one sample, and the keys from its start up to the last of them.

    It is a whole sample, unless context parallelism has cut the row inside it.
    """

    batch_index: int
    rows: slice
    """Positions among the queries of the row that this rank holds."""
    keys: slice
    """Positions in the whole row."""
    terms: tuple[tuple[int, Term], ...]
    """Terms of the sample, each with its number in the micro-batch."""
    position: int
    """Of the sample in the order of the run."""

    @property
    def offset(self) -> int:
        """Keys in front of the first query: query i sees the first ``offset + i + 1`` keys."""
        return (self.keys.stop - self.keys.start) - (self.rows.stop - self.rows.start)

    def of_rows(self, x: Tensor) -> Tensor:
        """View ``[1, h, rows, d]`` in ``[b, h, held tokens, d]``."""
        return x[self.batch_index : self.batch_index + 1, :, self.rows]

    def of_keys(self, x: Tensor) -> Tensor:
        """View ``[1, g, keys, d]`` in ``[b, g, s, d]``."""
        return x[self.batch_index : self.batch_index + 1, :, self.keys]


@dataclass(frozen=True)
class Rectangle:
    """Rows x keys of one term in one piece, in positions of the piece: part of what Eq. 1 sums."""

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
    """Samples of ``batch_size`` rows of ``seq_length`` tokens; built once a micro-batch.

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
        """Segments must lie inside the rows without overlap.

        ``held`` are the positions of a row whose queries this rank has, ascending; None means all.
        The keys are always those of the whole row.
        """
        for segment in segments:
            assert 0 <= segment.start < segment.stop <= seq_length, segment
            assert 0 <= segment.batch_index < batch_size, segment
        self.segments = tuple(segments)
        self.seq_length = seq_length
        self.batch_size = batch_size
        self.num_terms = sum(len(segment.terms) for segment in segments)
        self.held = (slice(0, seq_length),) if held is None else tuple(held)
        self.pieces = tuple(_pieces(self.segments, self.held))
        self.cache: dict[Hashable, Any] = {}
        """What a method derives from the samples and terms, for all layers."""
        self._rectangles: dict[torch.device, tuple[tuple[Rectangle, ...], ...]] = {}
        self._mask: dict[torch.device, Tensor] = {}

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


def _pieces(segments: Sequence[Segment], held: Sequence[slice]) -> Iterator[Piece]:
    first_term = 0
    for segment in segments:
        terms = tuple(enumerate(segment.terms, first_term))
        first_term += len(segment.terms)
        held_before = 0
        for part in held:
            start, stop = max(segment.start, part.start), min(segment.stop, part.stop)
            if start < stop:
                to_rows = held_before - part.start
                rows, keys = slice(start + to_rows, stop + to_rows), slice(segment.start, stop)
                yield Piece(segment.batch_index, rows, keys, terms, segment.position)
            held_before += part.stop - part.start


def _rectangles(piece: Piece, device: torch.device) -> Iterator[Rectangle]:
    """Yield what of each term lies in the piece, where something does."""
    first, stop = piece.keys.start + piece.offset, piece.keys.stop

    def indices(positions: np.ndarray, start: int) -> Tensor:
        return torch.from_numpy(positions - start).to(device)

    for number, term in piece.terms:
        rows = term.rows[(term.rows >= first) & (term.rows < stop)]
        keys = term.keys[term.keys < stop]
        if len(rows) and len(keys):
            crosses = bool(keys[-1] > rows[0])
            keys_of_piece = indices(keys, piece.keys.start)
            yield Rectangle(number, indices(rows, first), keys_of_piece, crosses, piece.offset)
