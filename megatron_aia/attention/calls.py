"""Which kernel calls attend to the samples of a micro-batch, and what of a tensor each one takes.

On CUDA neighbouring samples are one call of the flash kernel, with their boundaries. A CPU's kernel
knows no boundaries: samples of about one length are padded to the longest and are one batch of it.
What context parallelism has cut is a call of its own; a sequence has at most two such pieces on a
rank. So the number of calls does not grow with the samples of a sequence.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Union

import torch
from torch import Tensor

from megatron_aia.attention.flash_ops import Boundaries
from megatron_aia.attention.pieces import Piece
from megatron_aia.runtime.device import send

_COST_OF_A_CALL = 64 * 64
"""Elements of a map that take as long as one more call on a CPU."""

_USUAL_LENGTH = 64
"""Tokens of which a single sample is made a multiple, as varying lengths of sequences are: cuDNN
plans for every length anew, which takes as long as some layers."""

_PLACES_TO_CUT = 16
"""Where groups of samples may end, evenly over the samples: many give many choices to compare."""


class TokenBuffer:
    """A tensor ``[b, h, n, d]`` that calls fill, each its part; zero where none does."""

    def __init__(self, like: Tensor) -> None:
        b, h, n, d = like.shape
        # Tokens first, as megatron-core has them, and one more, where padding of a batch goes.
        self.tokens = like.new_zeros(n * b + 1, h, d)
        self.tensor = self.tokens[:-1].view(n, b, h, d).permute(1, 2, 0, 3)


class StripCall:
    """Samples that follow each other in a sequence, or one piece: a view of every tensor."""

    def __init__(self, pieces: Sequence[Piece], padding: int = 0) -> None:
        """``padding`` tokens after the last piece, of no sample, are attended to as its end."""
        first, last = pieces[0], pieces[-1]
        self.pieces = tuple(pieces)
        self.padding = padding
        self.batch_size = 1
        self.rows = slice(first.rows.start, last.rows.stop + padding)
        """Positions among the queries that this rank holds."""
        self.keys = slice(first.keys.start, last.keys.stop + padding)
        """Positions in the whole sequence."""
        self.length = self.rows.stop - self.rows.start
        """Queries of the call, or of each entry of its batch."""
        self._sequence = slice(first.batch_index, first.batch_index + 1)
        self._boundaries: dict[torch.device, Boundaries] = {}

    def place_of(self, piece: Piece) -> tuple[int, int]:
        """Return the entry of the batch that holds a piece, and its first query there."""
        return 0, piece.rows.start - self.rows.start

    def boundaries(self, device: torch.device) -> Boundaries:
        """Return where the samples begin and the last ends; nothing for a single one."""
        if len(self.pieces) == 1:
            return None, 0
        if device not in self._boundaries:
            stops = [piece.rows.stop - self.rows.start for piece in self.pieces]
            longest = max(piece.rows.stop - piece.rows.start for piece in self.pieces)
            cumulative = torch.tensor([0, *stops], dtype=torch.int32)
            self._boundaries[device] = (send(cumulative, device), longest)
        return self._boundaries[device]

    def of_queries(self, x: Tensor) -> Tensor:
        """Return the queries' part ``[1, h, rows, d]`` of ``[b, h, held, d]``."""
        return x[self._sequence, :, self.rows]

    def of_keys(self, x: Tensor) -> Tensor:
        """Return the keys' part ``[1, g, keys, d]`` of ``[b, g, s, d]``."""
        return x[self._sequence, :, self.keys]

    def of_gradient(self, x: Tensor) -> Tensor:
        """Return :meth:`of_queries` of the output's gradient."""
        return self.of_queries(x)

    def clear_padding(self, x: Tensor) -> None:
        """Set the padding of the call to zero in ``[b, h, held, d]``."""
        if self.padding:
            x[self._sequence, :, self.rows.stop - self.padding : self.rows.stop].zero_()

    def add_queries(self, whole: TokenBuffer, part: Tensor) -> None:
        """Put what :meth:`of_queries` took back to its place."""
        self.of_queries(whole.tensor).copy_(part)

    def add_keys(self, whole: TokenBuffer, part: Tensor) -> None:
        """Add what belongs to the keys: two pieces of a sample share its first ones."""
        self.of_keys(whole.tensor).add_(part)


class BatchCall:
    """Whole samples as a batch, each padded to the longest: a copy of every tensor.

    What pads a sample comes after it, so none of its queries sees it.
    """

    def __init__(
        self, pieces: Sequence[Piece], sequences: int, num_rows: int, num_keys: int
    ) -> None:
        """``sequences`` of ``num_keys`` tokens, of whose queries this rank holds ``num_rows``."""
        self.pieces = tuple(pieces)
        self.padding = 0
        self.batch_size = len(pieces)
        self.length = max(piece.rows.stop - piece.rows.start for piece in pieces)
        inside = torch.arange(self.length)
        lengths = torch.tensor([[piece.rows.stop - piece.rows.start] for piece in pieces])
        self._is_padding = inside >= lengths
        self._rows = self._tokens([piece.rows.start for piece in pieces], sequences, num_rows)
        self._keys = self._tokens([piece.keys.start for piece in pieces], sequences, num_keys)

    def _tokens(self, starts: list[int], sequences: int, length: int) -> tuple[Tensor, Tensor]:
        """Return the token of each place of the batch, to read from and to add to."""
        position = torch.tensor(starts).unsqueeze(1) + torch.arange(self.length)
        batch_index = torch.tensor([[piece.batch_index] for piece in self.pieces])
        token = position * sequences + batch_index
        read = token.masked_fill(self._is_padding, 0).flatten()
        return read, token.masked_fill(self._is_padding, length * sequences).flatten()

    def place_of(self, piece: Piece) -> tuple[int, int]:
        """Return the entry of the batch that holds a piece, and its first query there."""
        return self.pieces.index(piece), 0

    def boundaries(self, device: torch.device) -> Boundaries:
        """Return nothing: the samples are not joined."""
        return None, 0

    def of_queries(self, x: Tensor) -> Tensor:
        """Return the queries' part ``[samples, h, longest, d]`` of ``[b, h, held, d]``."""
        return self._take(x, self._rows[0])

    def of_keys(self, x: Tensor) -> Tensor:
        """Return the keys' part ``[samples, g, longest, d]`` of ``[b, g, s, d]``."""
        return self._take(x, self._keys[0])

    def of_gradient(self, x: Tensor) -> Tensor:
        """Return :meth:`of_queries` of the output's gradient: padding has none."""
        padding = self._is_padding.view(self.batch_size, 1, self.length, 1)
        return self.of_queries(x).masked_fill_(padding, 0)

    def clear_padding(self, x: Tensor) -> None:
        """Do nothing: what pads a batch is in no tensor but the copies."""

    def add_queries(self, whole: TokenBuffer, part: Tensor) -> None:
        """Put what :meth:`of_queries` took back to its place."""
        whole.tokens.index_add_(0, self._rows[1], part.transpose(1, 2).flatten(0, 1))

    def add_keys(self, whole: TokenBuffer, part: Tensor) -> None:
        """Add what belongs to the keys."""
        whole.tokens.index_add_(0, self._keys[1], part.transpose(1, 2).flatten(0, 1))

    def _take(self, x: Tensor, tokens: Tensor) -> Tensor:
        taken = x.permute(2, 0, 1, 3).flatten(0, 1).index_select(0, tokens)
        return taken.view(self.batch_size, self.length, *taken.shape[1:]).transpose(1, 2)


KernelCall = Union[StripCall, BatchCall]


def joined_calls(pieces: Sequence[Piece], num_rows: int, num_keys: int) -> list[KernelCall]:
    """Return calls with boundaries: neighbouring whole samples are one.

    A single sample takes some of the padding behind it along: cuDNN plans for every length anew.

    Args:
        pieces: of the micro-batch.
        num_rows: queries of a sequence that this rank holds.
        num_keys: tokens of a sequence.
    """
    strips: list[list[Piece]] = []
    for piece in pieces:
        if strips and _follows(strips[-1][-1], piece):
            strips[-1].append(piece)
        else:
            strips.append([piece])
    last = {strip[-1].batch_index: strip for strip in strips}
    return [
        StripCall(strip, _padding_of(strip[0], num_rows, num_keys))
        if len(strip) == 1 and strip is last[strip[0].batch_index]
        else StripCall(strip)
        for strip in strips
    ]


def _padding_of(piece: Piece, num_rows: int, num_keys: int) -> int:
    """Return the tokens behind the last piece of a sequence that bring it to a usual length."""
    if piece.offset or num_rows != num_keys:
        return 0
    return min(-_length(piece) % _USUAL_LENGTH, num_rows - piece.rows.stop)


def _follows(last: Piece, piece: Piece) -> bool:
    """Whether both are whole and side by side among the queries and among the keys."""
    ends = (last.batch_index, last.rows.stop, last.keys.stop)
    begins = (piece.batch_index, piece.rows.start, piece.keys.start)
    return begins == ends and last.offset == piece.offset == 0


def batched_calls(
    pieces: Sequence[Piece], sequences: int, num_rows: int, num_keys: int, most: int = 3
) -> list[KernelCall]:
    """Return calls without boundaries: a call for each cut piece, batches of the whole samples.

    Args:
        pieces: of the micro-batch.
        sequences: in the micro-batch.
        num_rows: queries of a sequence that this rank holds.
        num_keys: tokens of a sequence.
        most: batches, at most.
    """
    cut: list[KernelCall] = [StripCall([piece]) for piece in pieces if piece.offset]
    whole = sorted((piece for piece in pieces if not piece.offset), key=_length)
    for group in _groups([_length(piece) for piece in whole], most):
        if len(whole[group]) == 1:
            cut.append(StripCall(whole[group]))
        else:
            cut.append(BatchCall(whole[group], sequences, num_rows, num_keys))
    return cut


def _length(piece: Piece) -> int:
    return piece.rows.stop - piece.rows.start


def _groups(lengths: list[int], most: int) -> list[slice]:
    """Cut ascending lengths into at most so many groups, of little padded area."""
    if not lengths:
        return []
    count = len(lengths)
    places = sorted({count * i // _PLACES_TO_CUT for i in range(1, _PLACES_TO_CUT)} - {0})

    def groups(cuts: tuple[int, ...]) -> list[slice]:
        return [slice(*ends) for ends in pairwise((0, *cuts, count))]

    def cost(cuts: tuple[int, ...]) -> int:
        parts = groups(cuts)
        area = sum((part.stop - part.start) * lengths[part.stop - 1] ** 2 for part in parts)
        return area + len(parts) * _COST_OF_A_CALL

    choices = (cuts for size in range(most) for cuts in combinations(places, size))
    return groups(min(choices, key=cost))
