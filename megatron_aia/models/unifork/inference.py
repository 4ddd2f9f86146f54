"""How UniFork draws, along one branch, and answers, along the other."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_aia.attention.decoding import DecodeState
from megatron_aia.models.heads import columns_of_rank, gather_columns
from megatron_aia.models.inference import (
    FREE,
    Drawing,
    DrawingDefaults,
    Inference,
    check_one_square,
)
from megatron_aia.models.lanes import Way
from megatron_aia.models.unifork.network import UniForkModel
from megatron_aia.models.unifork.places import Places, find_places
from megatron_aia.models.unifork.sample_encoder import UniForkSampleEncoder


class UniForkInference(Inference):
    """One square of image tokens, each of several codes; answers from the text's vocabulary.

    The authors lead away from words of their own (``--negative-prompt``); without words, from the
    dropped prompt of training.
    """

    encoder: UniForkSampleEncoder

    def __init__(self, encoder: UniForkSampleEncoder, image_area: int) -> None:
        super().__init__(encoder)
        ids = encoder.vocabulary
        self.defaults = DrawingDefaults(
            guidance_scale=4.0, top_k=900, top_p=0.96, image_area=image_area
        )
        self.code_ids = range(ids.first_code, ids.stop)
        self.code_depth = ids.depth
        self.answer_ids = range(ids.text_size)
        self.text_ids = range(encoder.tokenizer.vocab_size)
        self.stop_ids = (encoder.special_tokens.end,)
        self._special = frozenset(vars(encoder.special_tokens).values())

    def grid(self, ratio: str, image_area: int) -> tuple[int, int]:
        """See ``Inference``."""
        check_one_square(ratio, image_area, self.defaults.image_area)
        return self.encoder.grid, self.encoder.grid

    def code_logits(self, model: UniForkModel, hidden: Tensor) -> Tensor:
        """See ``Inference``."""
        return self.next_code_logits(model, hidden, torch.empty_like(hidden[:, :0]).long())

    def next_code_logits(self, model: UniForkModel, hidden: Tensor, known: Tensor) -> Tensor:
        """See ``Inference``."""
        local = model.code_logits(hidden, known)[:, -1]
        codes, width = range(self.encoder.vocabulary.codebook_size), local.shape[-1]
        group = model.pg_collection.tp
        held = columns_of_rank(codes, width, group.rank())
        return gather_columns(local[:, held], codes, width, group)

    def image_tokens(self, codes: Tensor) -> Tensor:
        """See ``Inference``."""
        return self.encoder.vocabulary.join_codes(codes)

    def codes(self, drawing: Drawing, ids: np.ndarray) -> np.ndarray:
        """See ``Inference``."""
        tokens = torch.from_numpy(ids[drawing.plan == FREE])
        codes = self.encoder.vocabulary.split_codes(tokens)
        return codes.numpy().reshape(*drawing.grid, self.code_depth)

    def places(self, tokens: Tensor) -> dict[str, Tensor]:
        """See ``Inference``."""
        return vars(find_places(self.encoder.vocabulary, tokens))

    def run(
        self,
        chunk: Any,
        tokens: Tensor,
        positions: Tensor,
        state: DecodeState,
        images: Tensor | None,
        places: Mapping[str, Tensor],
    ) -> Tensor:
        """See ``Inference``."""
        output: Tensor = chunk(
            tokens,
            positions,
            None,
            places=Places(**places),
            extra_block_kwargs={"attention_bias": Way(state.lane, state)},
        )
        return output

    def text(self, ids: Any) -> str:
        """See ``Inference``."""
        return super().text([i for i in ids if i not in self._special])
