"""Where the samples and terms of a micro-batch lie, laid out once for all layers."""

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any, Optional

import torch
from torch import Tensor

from megatron_aia.aia.roles import Segment, without_terms
from megatron_aia.attention.calls import BatchCall, KernelCall, batched_calls, joined_calls
from megatron_aia.attention.flash_ops import joins_samples
from megatron_aia.attention.pieces import Rectangle, cut_pieces, rectangles_of


class AttentionLayout:
    """Samples of ``batch_size`` sequences of ``seq_length`` tokens; built once a micro-batch."""

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
        self._calls: dict[bool, tuple[KernelCall, ...]] = {}
        self._mask: dict[torch.device, Tensor] = {}

    def calls(self, device: torch.device) -> tuple[KernelCall, ...]:
        """Return which calls of a kernel attend to the micro-batch on a device."""
        joined = joins_samples(device)
        if joined not in self._calls:
            lengths = (sum(part.stop - part.start for part in self.held), self.seq_length)
            if joined:
                calls = joined_calls(self.pieces, *lengths)
            else:
                calls = batched_calls(self.pieces, self.batch_size, *lengths)
            self._calls[joined] = tuple(calls)
        return self._calls[joined]

    def is_one_call(self, device: torch.device) -> bool:
        """Whether one call views the whole micro-batch, and this rank holds all of it."""
        calls = self.calls(device)
        if self.batch_size > 1 or len(calls) != 1 or isinstance(calls[0], BatchCall):
            return False
        whole = slice(0, self.seq_length)
        return calls[0].rows == calls[0].keys == whole and self.held == (whole,)

    def without_terms(self) -> "AttentionLayout":
        """Return the same samples with nothing to measure."""
        segments = without_terms(self.segments)
        return AttentionLayout(segments, self.seq_length, self.batch_size, self.held)

    @cached_property
    def rectangles(self) -> tuple[tuple[Rectangle, ...], ...]:
        """The rectangles of each piece."""
        return tuple(tuple(rectangles_of(piece)) for piece in self.pieces)

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
