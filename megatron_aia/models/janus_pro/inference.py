"""How Janus-Pro draws and answers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from megatron_aia.attention.decoding import DecodeState
from megatron_aia.models.heads import columns_of_rank, gather_columns
from megatron_aia.models.inference import DrawingDefaults, Inference, check_one_square
from megatron_aia.models.janus_pro.network import JanusModel
from megatron_aia.models.janus_pro.places import Places, find_places
from megatron_aia.models.janus_pro.sample_encoder import JanusSampleEncoder


class JanusInference(Inference):
    """One square of codes without forced tokens; answers from the text's vocabulary."""

    encoder: JanusSampleEncoder

    def __init__(self, encoder: JanusSampleEncoder) -> None:
        super().__init__(encoder)
        ids = encoder.vocabulary
        area = encoder.image_size**2
        self.defaults = DrawingDefaults(guidance_scale=5.0, top_k=0, image_area=area)
        self.code_ids = range(ids.first_code, ids.image_slot)
        self.answer_ids = range(ids.text_size)
        self.text_ids = range(encoder.tokenizer.vocab_size)
        self.stop_ids = (encoder.special_tokens.eos,)
        self._special = frozenset(vars(encoder.special_tokens).values())

    def grid(self, ratio: str, image_area: int) -> tuple[int, int]:
        """See ``Inference``."""
        check_one_square(ratio, image_area, self.defaults.image_area)
        return self.encoder.grid, self.encoder.grid

    def code_logits(self, model: JanusModel, hidden: Tensor) -> Tensor:
        """See ``Inference``."""
        local, codes = model.code_logits(hidden), range(len(self.code_ids))
        group, width = model.pg_collection.tp, local.shape[-1]
        held = columns_of_rank(codes, width, group.rank())
        return gather_columns(local[:, held], codes, width, group)

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
            images=images,
            places=Places(**places),
            extra_block_kwargs={"attention_bias": state},
        )
        return output

    def text(self, ids: Any) -> str:
        """See ``Inference``."""
        return super().text([i for i in ids if i not in self._special])
