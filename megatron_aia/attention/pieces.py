"""Samples as kernels see them: cut by context parallelism, joined where they are whole."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
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


class Strip:
    """Pieces of one sequence that one kernel call attends to.

    It is a single piece, or several whole ones that follow each other among the queries and among
    the keys.
    """

    def __init__(self, first: Piece) -> None:
        self.pieces = [first]
        self._cumulative: dict[torch.device, Tensor] = {}

    def extends_to(self, piece: Piece) -> bool:
        """Whether ``piece`` may be added."""
        last = self.pieces[-1]
        follows = (piece.batch_index, piece.rows.start, piece.keys.start) == (
            *(last.batch_index, last.rows.stop, last.keys.stop),
        )
        return follows and last.offset == piece.offset == 0

    @property
    def rows(self) -> slice:
        """Positions among the queries that this rank holds."""
        return slice(self.pieces[0].rows.start, self.pieces[-1].rows.stop)

    @property
    def keys(self) -> slice:
        """Positions in the whole sequence."""
        return slice(self.pieces[0].keys.start, self.pieces[-1].keys.stop)

    def of_rows(self, x: Tensor) -> Tensor:
        """View ``[1, h, rows, d]`` in ``[b, h, held tokens, d]``."""
        batch_index = self.pieces[0].batch_index
        return x[batch_index : batch_index + 1, :, self.rows]

    def of_keys(self, x: Tensor) -> Tensor:
        """View ``[1, g, keys, d]`` in ``[b, g, s, d]``."""
        batch_index = self.pieces[0].batch_index
        return x[batch_index : batch_index + 1, :, self.keys]

    def rows_of(self, piece: Piece, x: Tensor) -> Tensor:
        """View the queries of a piece, ``[h, rows, ...]``, in ``[1, h, strip's rows, ...]``."""
        first = self.pieces[0].rows.start
        return x[0, :, piece.rows.start - first : piece.rows.stop - first]

    def keys_of(self, piece: Piece, x: Tensor) -> Tensor:
        """View the keys of a piece, ``[g, keys, ...]``, in ``[1, g, strip's keys, ...]``."""
        first = self.pieces[0].keys.start
        return x[0, :, piece.keys.start - first : piece.keys.stop - first]

    def cumulative(self, device: torch.device) -> Tensor | None:
        """Return where pieces begin and the last ends, int32 ``[pieces + 1]``; None for one."""
        if len(self.pieces) == 1:
            return None
        if device not in self._cumulative:
            stops = [piece.rows.stop - self.rows.start for piece in self.pieces]
            self._cumulative[device] = torch.tensor([0, *stops], dtype=torch.int32, device=device)
        return self._cumulative[device]

    @property
    def longest(self) -> int:
        """Queries of the longest piece."""
        return max(piece.rows.stop - piece.rows.start for piece in self.pieces)


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


def lay_strips(pieces: Sequence[Piece], joined: bool) -> list[Strip]:
    """Return a strip for each piece, or if ``joined`` as few as possible, in the same order."""
    strips: list[Strip] = []
    for piece in pieces:
        if joined and strips and strips[-1].extends_to(piece):
            strips[-1].pieces.append(piece)
        else:
            strips.append(Strip(piece))
    return strips
