"""Mistakes that are easy to make where a model writes; each must be seen by the comparisons."""

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_aia.attention.decoding import DecodeState
from megatron_aia.generation import drawing
from megatron_aia.generation.decoder import Decoder
from megatron_aia.generation.sampling import RowNoise, Sampling, guide, keep_likely

_begin, _keep, _init = DecodeState.begin, DecodeState.keep, DecodeState.__init__


def each_rank_draws_for_itself(stack: ExitStack) -> None:
    def numbers(self: RowNoise, size: int, rows: np.ndarray, device: torch.device) -> Tensor:
        return torch.empty(len(rows), size).exponential_(generator=generator)

    def choose(self: Decoder, hidden: Any, logits: Any, pick: Any, count: int) -> Tensor:
        return pick(logits(self._chunks[-1], hidden))

    generator = torch.Generator().manual_seed(dist.get_rank())
    stack.enter_context(patch.object(RowNoise, "draw", numbers))
    stack.enter_context(patch.object(Decoder, "choose", choose))


def guidance_after_the_filter(stack: ExitStack) -> None:
    def late(logits: Tensor, scale: float) -> Tensor:
        return guide(keep_likely(logits, Sampling(1.0, top_k=6)), scale).nan_to_num(-1e9)

    stack.enter_context(patch.object(drawing, "guide", late))


def rows_of_a_picture_part(stack: ExitStack) -> None:
    """The row without the prompt gets the token after the one that was chosen."""

    def feed(self: Decoder, tokens: Tensor, places: Any, images: Any = None) -> Any:
        if tokens.shape[1] == 1 and len(tokens) == 6:
            tokens = torch.cat((tokens[:3], tokens[4:], tokens[3:4]))
        return _feed(self, tokens, places, images)

    _feed = Decoder.feed
    stack.enter_context(patch.object(Decoder, "feed", feed))


def the_newest_token_is_not_seen(stack: ExitStack) -> None:
    def keep(self: DecodeState, layer: int, key: Tensor, value: Tensor) -> Any:
        keys, values = _keep(self, layer, key, value)
        if key.shape[0] == 1:
            keys, values = (x[:, :, [*range(self.stop - 1), self.stop - 2]] for x in (keys, values))
        return keys, values

    stack.enter_context(patch.object(DecodeState, "keep", keep))


def new_positions_count_the_empty_slots(stack: ExitStack) -> None:
    """In the prompts too it would be none: only distances between positions count."""

    def begin(self: DecodeState, new: int) -> Tensor:
        positions = _begin(self, new)
        slots = torch.arange(self.start, self.stop).expand_as(positions)
        return slots if new == 1 else positions

    stack.enter_context(patch.object(DecodeState, "begin", begin))


def empty_slots_are_seen(stack: ExitStack) -> None:
    def init(self: DecodeState, *args: Any) -> None:
        _init(self, *args)
        self._seen = None

    stack.enter_context(patch.object(DecodeState, "__init__", init))


MISTAKES = {
    "each rank draws for itself": (2, each_rank_draws_for_itself),
    "guidance after the filter": (1, guidance_after_the_filter),
    "the rows of a picture part": (1, rows_of_a_picture_part),
    "the newest token is not seen": (1, the_newest_token_is_not_seen),
    "new positions count the empty slots": (1, new_positions_count_the_empty_slots),
    "empty slots are seen": (1, empty_slots_are_seen),
}
