"""Where the samples and terms of a micro-batch lie, as index tensors every layer shares."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_aia.aia.roles import Segment, Term


@dataclass(frozen=True)
class Rectangle:
    """Rows x keys of one term, in positions of its sample: the part of the map Eq. 1 sums."""

    term: int
    """Number of the term in the micro-batch."""
    rows: Tensor
    """int64 ``[rows]``, ascending, distinct."""
    keys: Tensor
    """int64 ``[keys]``, ascending, distinct."""
    crosses_diagonal: bool
    """Some key stands after some row, so the causal mask cuts into the rectangle."""


class AttentionLayout:
    """Samples of ``batch_size`` rows of ``seq_length`` tokens; built once a micro-batch.

    Tensors are made on first use on a device and kept. A causal mask of a rectangle is not kept:
    it follows from the indices, and few rectangles need one.
    """

    def __init__(self, segments: Sequence[Segment], seq_length: int, batch_size: int) -> None:
        """Segments must lie inside the rows without overlap."""
        for segment in segments:
            assert 0 <= segment.start < segment.stop <= seq_length, segment
            assert 0 <= segment.batch_index < batch_size, segment
        self.segments = tuple(segments)
        self.seq_length = seq_length
        self.batch_size = batch_size
        self.num_terms = sum(len(segment.terms) for segment in segments)
        self.cache: dict[Hashable, Any] = {}
        """What a method derives from the samples and terms, for all layers."""
        self._rectangles: dict[torch.device, tuple[tuple[Rectangle, ...], ...]] = {}
        self._mask: dict[torch.device, Tensor] = {}

    def without_terms(self) -> "AttentionLayout":
        """Return the same samples with nothing to measure."""
        segments = [replace(segment, terms=()) for segment in self.segments]
        return AttentionLayout(segments, self.seq_length, self.batch_size)

    def rectangles(self, device: torch.device) -> tuple[tuple[Rectangle, ...], ...]:
        """Return the rectangles of each segment, on ``device``."""
        if device not in self._rectangles:
            first_term = 0
            by_segment = []
            for segment in self.segments:
                numbered = enumerate(segment.terms, first_term)
                by_segment.append(
                    tuple(_rectangle(term, i, segment.start, device) for i, term in numbered)
                )
                first_term += len(segment.terms)
            self._rectangles[device] = tuple(by_segment)
        return self._rectangles[device]

    def attention_mask(self, device: torch.device) -> Tensor:
        """Return bool ``[b, s, s]``: query i (dim 1) sees key j (dim 2). The dense method's."""
        if device not in self._mask:
            mask = torch.zeros(
                (self.batch_size, self.seq_length, self.seq_length), dtype=torch.bool
            )
            for segment in self.segments:
                inside = slice(segment.start, segment.stop)
                mask[segment.batch_index, inside, inside] = True
            self._mask[device] = mask.tril().to(device)
        return self._mask[device]


def _rectangle(term: Term, number: int, start: int, device: torch.device) -> Rectangle:
    def indices(positions: np.ndarray) -> Tensor:
        return torch.from_numpy(positions - start).to(device)

    crosses = bool(term.keys[-1] > term.rows[0])
    return Rectangle(number, indices(term.rows), indices(term.keys), crosses)
