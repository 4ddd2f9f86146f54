"""Samples as kernels see them: cut by context parallelism."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from megatron_aia.aia.roles import AIATerm, Segment


@dataclass(frozen=True)
class Piece:
    """Consecutive queries of one sample, and the keys from its start up to the last of them.

    It is a whole sample, unless context parallelism has cut the sequence inside it.
    """

    batch_index: int
    rows: slice
    """Positions among the queries of the sequence that this rank holds."""
    keys: slice
    """Positions in the whole sequence."""
    terms: tuple[tuple[int, AIATerm], ...]
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
    """Queries x keys of one term in one piece, in its positions: part of what Eq. 1 sums."""

    term: int
    """Number of the term in the micro-batch."""
    rows: np.ndarray
    """int64 ``[rows]``, ascending, distinct."""
    keys: np.ndarray
    """int64 ``[keys]``, ascending, distinct."""


def cut_pieces(segments: Sequence[Segment], held: Sequence[slice]) -> Iterator[Piece]:
    """Yield the pieces of every sample; ``held`` are the positions whose queries this rank has."""
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


def rectangles_of(piece: Piece) -> Iterator[Rectangle]:
    """Yield what of each term lies in the piece, where something does."""
    first, stop = piece.keys.start + piece.offset, piece.keys.stop
    for number, term in piece.terms:
        rows = term.queries[(term.queries >= first) & (term.queries < stop)]
        keys = term.keys[term.keys < stop]
        if len(rows) and len(keys):
            yield Rectangle(number, rows - first, keys - piece.keys.start)
