"""UniFork on megatron-core: one decoder that forks, residual codes in and out.

::

    text     embedding ----------------------+           +- understanding, norm - output_layer
    image    codebook, sum, code_projection -+- shared --+
    markers  markers ------------------------+           +- generation, norm ---- depth_head

What comes in lives on the first pipeline stage, what goes out on the last. Images to look at and to
draw come in alike.
"""

from typing import Any, Optional

import torch
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor

from megatron_aia.attention.decoding import DecodeState
from megatron_aia.config import Config
from megatron_aia.models.backbone import (
    PackedGPTModel,
    decoder_arguments,
    padded_vocab_size,
)
from megatron_aia.models.norm import RMSNorm
from megatron_aia.models.unifork.depth_head import DepthHead
from megatron_aia.models.unifork.fork import BRANCHES, fork_specs, with_zero_gradients
from megatron_aia.models.unifork.places import Places, find_places
from megatron_aia.models.unifork.settings import UniForkModelConfig, unifork_model
from megatron_aia.models.unifork.vocabulary import UniForkVocabulary
from megatron_aia.models.whole_layers import projector, whole_config
from megatron_aia.runtime.parallel import Parallel

UNDERSTANDING, GENERATION = range(len(BRANCHES))
_CODEBOOK, _COPY = "codebook.weight", "depth_codebook.weight"
_FRESH_CODES = 0.5


def vocabulary(model: UniForkModelConfig) -> UniForkVocabulary:
    """Return the numbering of a sequence's positions."""
    return UniForkVocabulary(model.text_vocab_size, model.codebook_size, model.code_depth)


class UniForkModel(PackedGPTModel):
    """One chunk of UniFork.

    Args:
        config: of the run.
        parallel: of the run.
        virtual_stage: number of the chunk on this pipeline stage.
    """

    def __init__(self, config: Config, parallel: Parallel, virtual_stage: int) -> None:
        model = unifork_model(config)
        arguments = decoder_arguments(config, parallel, virtual_stage, model.text_vocab_size)
        core = arguments["config"]
        # Layers below and above the fork hold other weights: each has keys of its own.
        core.hetereogenous_dist_checkpoint = True
        arguments["transformer_layer_spec"] = fork_specs(
            config, core, virtual_stage, parallel.pipeline_rank, model.num_shared_layers
        )
        super().__init__(**arguments, scatter_embedding_sequence_parallel=False)
        self.vocabulary = vocabulary(model)
        groups = parallel.groups
        if self.pre_process:
            self.codebook = _codebook(model, core.params_dtype)
            self.code_projection = projector(core, model.code_channels, groups)
            self.markers = torch.nn.Embedding(2, core.hidden_size, dtype=core.params_dtype)
        if self.post_process:
            # Norms and heads see chosen positions of whole sequences, not a slice of the sequence.
            self.output_layer.sequence_parallel = False
            self.output_layer.allreduce_dgrad = parallel.tensor_size > 1
            width, epsilon = core.hidden_size, core.layernorm_epsilon
            norms = {name: RMSNorm(whole_config(core), width, epsilon) for name in BRANCHES}
            self.final_norms = torch.nn.ModuleDict(norms)
            codes = padded_vocab_size(config, model.codebook_size, parallel.tensor_size)
            self.depth_head = DepthHead(core, model, codes, groups)
            if not self.pre_process:
                self.depth_codebook = _codebook(model, core.params_dtype)

    def forward(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        attention_mask: Optional[Tensor],
        labels: Optional[Tensor] = None,
        extra_block_kwargs: Optional[dict[str, Any]] = None,
        places: Optional[Places] = None,
    ) -> Tensor:
        """Run the chunk.

        Args:
            tokens: ``[b, s]`` ids of ``UniForkVocabulary``; read on the first stage.
            position_ids: ``[b, s]``, restarting with every sample.
            attention_mask: of megatron-core; None where the core attention has its own.
            labels: ``[b, s]`` ids, ``NO_LABEL`` where nothing is to be learned.
            extra_block_kwargs: travels to the layers; ``attention_bias`` is a ``Way``.
            places: of the tokens and labels; None finds them here, which waits for the device.

        Returns:
            Before the last stage, hidden states ``[s, b, h]``. On it, negative log-likelihoods
            ``[b, s]`` (0 without a label; the mean over the codes of an image token), or without
            labels the hidden states ``[b, s, h]`` behind the branch's norm.
        """
        # Kept for _postprocess, which megatron-core calls with arguments of its own.
        self._places = places or find_places(self.vocabulary, tokens, labels)
        decoder_input = self._embed(tokens, position_ids) if self.pre_process else None
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
        names = ("depth_head.classifier.weight", "depth_head.classifier.bias")
        return super().real_sizes() | dict.fromkeys(names, self.vocabulary.codebook_size)

    def fresh_deviations(self) -> dict[str, float]:
        """See ``PackedGPTModel``; the vectors of an image tokeniser are no weights of a layer."""
        return dict.fromkeys((_CODEBOOK, _COPY), _FRESH_CODES)

    def copies(self) -> dict[str, str]:
        """See ``PackedGPTModel``."""
        return {**super().copies(), _COPY: _CODEBOOK}

    def _embed(self, tokens: Tensor, position_ids: Tensor) -> Tensor:
        """Return the decoder's input ``[s, b, h]``; under sequence parallelism this rank's part."""
        ids, places = self.vocabulary, self._places
        text = self.embedding(tokens.where(tokens < ids.text_size, 0), position_ids)  # [s, b, h]
        rows = text.transpose(0, 1).flatten(0, 1)  # [b * s, h]
        flat = tokens.flatten()
        for positions, embed, first in (
            (places.images, self._embed_images, ids.first_code),
            (places.markers, self._embed_markers, ids.begin),
        ):
            chosen = flat.index_select(0, positions)
            # Of none, one row for nobody: every parameter gets a gradient.
            found = embed(chosen if len(chosen) else chosen.new_full((1,), first))
            rows = rows.index_copy(0, positions, found[: len(chosen)].to(rows.dtype))
        embedded = rows.view(*tokens.shape, -1).transpose(0, 1).contiguous()
        if self.config.sequence_parallel:
            embedded = scatter_to_sequence_parallel_region(embedded, group=self.pg_collection.tp)
        return embedded

    def _embed_images(self, ids: Tensor) -> Tensor:
        codes = self.vocabulary.split_codes(ids)
        embedded: Tensor = self.code_projection(self.codebook(codes).sum(dim=-2))
        return embedded

    def _embed_markers(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.markers(ids - self.vocabulary.begin)
        return embedded

    def _postprocess(
        self, hidden_states: Tensor, *args: Any, labels: Optional[Tensor] = None, **kwargs: Any
    ) -> Tensor:
        if not self.post_process:
            return hidden_states
        way = kwargs["extra_block_kwargs"]["attention_bias"]
        if isinstance(way.attention_bias, DecodeState):
            last: Tensor = self.final_norms[BRANCHES[way.lane]](hidden_states[-1])
            return last
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        hidden_states = with_zero_gradients(hidden_states, *self._idle(way.lane))
        hidden: Tensor = self.final_norms[BRANCHES[way.lane]](hidden_states).transpose(0, 1)
        return hidden if labels is None else self._losses(hidden, labels, way.lane)

    def _idle(self, lane: int) -> list[torch.nn.Module]:
        """Return the modules at the end that micro-batches of a lane do not use."""
        head = self.depth_head if lane == UNDERSTANDING else self.output_layer
        return [self.final_norms[BRANCHES[1 - lane]], head]

    def _losses(self, hidden: Tensor, labels: Tensor, lane: int) -> Tensor:
        """Return the negative log-likelihoods ``[b, s]`` of the labels of a lane."""
        is_text = lane == UNDERSTANDING
        positions = self._places.text_labels if is_text else self._places.image_labels
        rows, targets = hidden.flatten(0, 1), labels.flatten()
        losses = rows.new_zeros(len(targets), dtype=torch.float32)
        count = len(positions)
        if not count:
            # One row for nobody: every parameter gets a gradient.
            positions = positions.new_zeros(1)
        chosen, ids = rows.index_select(0, positions), targets.index_select(0, positions)
        found = self._text_losses(chosen, ids) if is_text else self._image_losses(chosen, ids)
        losses = losses.index_copy(0, positions[:count], found[:count].float())
        return losses.view(labels.shape)

    def _text_losses(self, hidden: Tensor, ids: Tensor) -> Tensor:
        logits = self.text_logits(hidden).unsqueeze(1)
        ids = ids.clamp(0, self.vocabulary.text_size - 1)
        return self.token_losses(ids.unsqueeze(0), logits, self.vocabulary.text_size).flatten()

    def _image_losses(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the mean over the codes of each image token."""
        ids = ids.clamp(min=self.vocabulary.first_code)
        codes = self.vocabulary.split_codes(ids)
        logits = self.code_logits(hidden, codes).transpose(0, 1)
        # megatron-core's cross entropy takes [b, s] labels and [s, b, v] logits.
        losses = self.token_losses(codes, logits.contiguous(), self.vocabulary.codebook_size)
        return losses.mean(dim=-1)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Return this rank's columns of the text head, ``[..., padded text_vocab_size / tp]``."""
        weight = None
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        logits, _ = self.output_layer(hidden, weight=weight)
        return logits

    def code_logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Return this rank's columns of the image head; see ``DepthHead``.

        Args:
            hidden: ``[n, h]``.
            codes: ``[n, d]``, those of the image token that are known.
        """
        codebook = self.codebook if self.pre_process else self.depth_codebook
        logits: Tensor = self.depth_head(hidden, codebook(codes))
        return logits

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Any, ...] = (),
        metadata: Optional[dict[str, Any]] = None,
    ) -> dict[str, Any]:
        """Return megatron-core's form of the weights; the last stage's codebook is the first's."""
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        copy = state.get(f"{prefix}{_COPY}")
        if copy is not None:
            copy.key = f"{prefix}{_CODEBOOK}"
            copy.replica_id = (1, *copy.replica_id[1:])
        return state


def _codebook(model: UniForkModelConfig, dtype: torch.dtype) -> torch.nn.Embedding:
    """Return the image tokeniser's vectors, which are never trained."""
    # The image tokeniser has one row more than codes, which travels with it.
    codebook = torch.nn.Embedding(model.codebook_size + 1, model.code_channels, dtype=dtype)
    codebook.weight.requires_grad_(False)
    return codebook
