"""Janus-Pro on megatron-core: the shared decoder with two ways in and two heads for images.

::

    text      embedding ---------------------------------------------+           +- output_layer
    look at   uint8 image -> vision_model -> vision_projection ------+- decoder -+
    draw      code -> generation_embedding -> generation_projection -+           +- generation_head

What comes in lives on the first pipeline stage, what goes out on the last.
"""

from typing import Any, Optional

import torch
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor

from megatron_aia.config import Config
from megatron_aia.models.backbone import (
    PackedGPTModel,
    decoder_arguments,
    is_decoding,
    padded_vocab_size,
)
from megatron_aia.models.janus_pro.image_layers import GenerationHead
from megatron_aia.models.janus_pro.places import Places, find_places
from megatron_aia.models.janus_pro.settings import JanusModelConfig, janus_model
from megatron_aia.models.janus_pro.siglip import SiglipTower
from megatron_aia.models.janus_pro.vocabulary import JanusVocabulary
from megatron_aia.models.whole_layers import projector
from megatron_aia.runtime.parallel import Parallel


def vocabulary(model: JanusModelConfig) -> JanusVocabulary:
    """Return the numbering of a sequence's positions."""
    return JanusVocabulary(model.text_vocab_size, model.codebook_size)


class JanusModel(PackedGPTModel):
    """One chunk of Janus-Pro.

    Args:
        config: of the run.
        parallel: of the run.
        virtual_stage: number of the chunk on this pipeline stage.
    """

    def __init__(self, config: Config, parallel: Parallel, virtual_stage: int) -> None:
        model = janus_model(config)
        super().__init__(
            **decoder_arguments(config, parallel, virtual_stage, model.text_vocab_size),
            scatter_embedding_sequence_parallel=False,
        )
        self.vocabulary = vocabulary(model)
        groups = parallel.groups
        if self.pre_process:
            self.vision_model = SiglipTower(model, self.config, groups)
            self.vision_projection = projector(self.config, model.vision_hidden_size, groups)
            self.generation_embedding = torch.nn.Embedding(
                model.codebook_size, model.code_channels, dtype=self.config.params_dtype
            )
            self.generation_projection = projector(self.config, model.code_channels, groups)
        if self.post_process:
            # The heads see chosen positions of whole sequences, not a slice of the sequence.
            self.output_layer.sequence_parallel = False
            self.output_layer.allreduce_dgrad = parallel.tensor_size > 1
            codes = padded_vocab_size(config, model.codebook_size, parallel.tensor_size)
            self.generation_head = GenerationHead(self.config, codes, groups)

    def forward(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        attention_mask: Optional[Tensor],
        images: Optional[Tensor] = None,
        labels: Optional[Tensor] = None,
        extra_block_kwargs: Optional[dict[str, Any]] = None,
        places: Optional[Places] = None,
    ) -> Tensor:
        """Run the chunk.

        Args:
            tokens: ``[b, s]`` ids of ``JanusVocabulary``; read on the first stage.
            position_ids: ``[b, s]``, restarting with every sample.
            attention_mask: of megatron-core; None where the core attention has its own.
            images: uint8 ``[n, 3, side, side]`` in the order of their slots in whole sequences;
                None where no position is a slot.
            labels: ``[b, s]`` ids, ``NO_LABEL`` where nothing is to be learned.
            extra_block_kwargs: travels to the layers.
            places: of the tokens and labels; None finds them here, which waits for the device and
                takes sequences for whole.

        Returns:
            Before the last stage, hidden states ``[s, b, h]``. On it, negative log-likelihoods
            ``[b, s]`` (0 without a label), or without labels the hidden states ``[b, s, h]``
            that ``text_logits`` and ``code_logits`` take.
        """
        # Kept for _postprocess, which megatron-core calls with arguments of its own.
        self._places = places or find_places(self.vocabulary, tokens, labels)
        decoder_input = None
        if self.pre_process:
            decoder_input = self._embed(tokens, position_ids, self._embed_images(images))
        return super().forward(
            tokens,
            position_ids,
            attention_mask,
            decoder_input=decoder_input,
            labels=labels,
            extra_block_kwargs=extra_block_kwargs,
        )

    def real_sizes(self) -> dict[str, int]:
        """Return the rows without padding of every parameter that has some: name to rows."""
        names = ("generation_head.output.weight", "generation_head.output.bias")
        return super().real_sizes() | dict.fromkeys(names, self.vocabulary.codebook_size)

    def _embed(self, tokens: Tensor, position_ids: Tensor, features: Tensor) -> Tensor:
        """Return the decoder's input ``[s, b, h]``; under sequence parallelism this rank's part.

        ``features [n * slots, h]`` are those of all images of the whole sequences: every
        context-parallel rank has looked at them, as an image may lie on several. The sum of
        gradients over the ranks is that of one look.
        """
        ids, places = self.vocabulary, self._places
        is_text = tokens < ids.first_code
        text = self.embedding(tokens.where(is_text, 0), position_ids)  # [s, b, h]
        rows = text.transpose(0, 1).flatten(0, 1)  # [b * s, h]
        codes = self._embed_codes(tokens.flatten().index_select(0, places.codes) - ids.first_code)
        rows = rows.index_copy(0, places.codes, codes[: len(places.codes)].to(rows.dtype))
        assert len(places.slots) <= len(features), "a slot without a feature"
        held = features.index_select(0, places.features)
        rows = rows.index_copy(0, places.slots, held.to(rows.dtype))
        embedded = rows.view(*tokens.shape, -1).transpose(0, 1).contiguous()
        if self.config.sequence_parallel:
            embedded = scatter_to_sequence_parallel_region(embedded, group=self.pg_collection.tp)
        return embedded

    def _embed_codes(self, codes: Tensor) -> Tensor:
        """Return ``[n, h]``; of no codes, one row for nobody: every parameter gets a gradient."""
        some = codes if len(codes) else codes.new_zeros(1)
        embedded: Tensor = self.generation_projection(self.generation_embedding(some))
        return embedded

    def _embed_images(self, images: Optional[Tensor]) -> Tensor:
        """Return ``[n * slots, h]``; without images, rows for nobody as for codes."""
        if images is not None and len(images):
            features = self.vision_model(images).flatten(0, 1)
        elif torch.is_grad_enabled() and any(
            p.requires_grad for p in self.vision_model.parameters()
        ):
            side = self.vision_model.image_size
            black = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self.embedding_device)
            features = self.vision_model(black).flatten(0, 1)
        else:
            weight = self.vision_projection.encoder.linear_fc1.weight
            features = weight.new_zeros(1, weight.shape[1])
        embedded: Tensor = self.vision_projection(features)
        return embedded

    @property
    def embedding_device(self) -> torch.device:
        """Device of the parameters."""
        return self.embedding.word_embeddings.weight.device

    def _postprocess(
        self, hidden_states: Tensor, *args: Any, labels: Optional[Tensor] = None, **kwargs: Any
    ) -> Tensor:
        if not self.post_process:
            return hidden_states
        if is_decoding(kwargs.get("extra_block_kwargs")):
            return hidden_states[-1]
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        hidden = hidden_states.transpose(0, 1)
        return hidden if labels is None else self._losses(hidden, labels)

    def _losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the negative log-likelihoods ``[b, s]``, each from the head of its label.

        A head computes logits at the positions of its own labels only.
        """
        rows, targets = hidden.flatten(0, 1), labels.flatten()
        first_code = self.vocabulary.first_code
        losses = rows.new_zeros(len(targets), dtype=torch.float32)
        places, num_codes = self._places, self.vocabulary.codebook_size
        for head, positions, offset, size in (
            (self.text_logits, places.text_labels, 0, first_code),
            (self.code_logits, places.code_labels, first_code, num_codes),
        ):
            count = len(positions)
            if not count:
                # One row for nobody: every parameter gets a gradient.
                positions = positions.new_zeros(1)
            ids = (targets[positions] - offset).clamp(0, size - 1)
            logits = head(rows[positions]).unsqueeze(1)
            found = self.token_losses(ids.unsqueeze(0), logits, size).flatten()
            losses = losses.index_copy(0, positions[:count], found[:count].float())
        return losses.view(labels.shape)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Return this rank's columns of the text head, ``[..., padded text_vocab_size / tp]``."""
        logits, _ = self.output_layer(hidden)
        return logits

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Return this rank's columns of the image head, ``[..., padded codebook_size / tp]``."""
        logits: Tensor = self.generation_head(hidden)
        return logits
