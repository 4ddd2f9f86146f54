"""The toy family's network and losses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor

from megatron_aia.aia.inject import AIAContext
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.targets import NEXT_TOKEN, BatchTarget
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.backbone import (
    PackedGPTModel,
    decoder_arguments,
    is_last_chunk,
    packed_causal_mask,
)
from megatron_aia.models.losses import LossTerm, NextToken, Outputs, TargetTerm
from megatron_aia.models.spec import ModelSpec
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.shards.image_tokenizer import ImageTokenizer
from support.toy_family.family import ToyModelConfig
from support.toy_family.sample_encoder import TEACHER, VECTOR, ToySampleEncoder


def toy_model(config: Config) -> ToyModelConfig:
    assert isinstance(config.model, ToyModelConfig)
    return config.model


class ToyModel(PackedGPTModel):
    """The shared decoder, with a vector added by lane on the way in and two heads."""

    def __init__(self, config: Config, parallel: Parallel, virtual_stage: int) -> None:
        model = toy_model(config)
        size = model.text_vocab_size + model.codebook_size + 1
        super().__init__(
            **decoder_arguments(config, parallel, virtual_stage, size),
            scatter_embedding_sequence_parallel=False,
        )
        width = self.config.hidden_size
        if self.pre_process:
            self.lanes = torch.nn.Embedding(2, width, dtype=self.config.params_dtype)
        if self.post_process:
            # The heads see chosen positions of whole sequences, not a slice of the sequence.
            self.output_layer.sequence_parallel = False
            self.output_layer.allreduce_dgrad = parallel.tensor_size > 1
            self.vector_head = torch.nn.Linear(
                width, model.vector_size, bias=False, dtype=self.config.params_dtype
            )

    def forward(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        lane: int = 0,
        targets: Mapping[str, BatchTarget] | None = None,
        extra_block_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        decoder_input = None
        if self.pre_process:
            decoder_input = self.embedding(tokens, position_ids) + self.lanes.weight[lane]
            if self.config.sequence_parallel:
                decoder_input = scatter_to_sequence_parallel_region(
                    decoder_input, group=self.pg_collection.tp
                )
        hidden = super().forward(
            tokens,
            position_ids,
            attention_mask,
            decoder_input=decoder_input,
            extra_block_kwargs=extra_block_kwargs,
        )
        return self._outputs(hidden, targets or {}) if self.post_process else hidden

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.post_process and self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        return hidden_states

    def _outputs(self, hidden: Tensor, targets: Mapping[str, BatchTarget]) -> Outputs:
        """Return one row of output for each entry of a target; of none, a row for nobody."""
        rows = hidden.transpose(0, 1).flatten(0, 1)
        outputs = {}
        for name, target in targets.items():
            count = len(target.positions)
            places = target.positions if count else target.positions.new_zeros(1)
            chosen = rows.index_select(0, places)
            if name == VECTOR:
                outputs[name] = self.vector_head(chosen)[:count]
                continue
            weight = self.shared_embedding_or_output_weight()
            logits, _ = self.output_layer(chosen, weight=weight)
            if name == NEXT_TOKEN:
                ids = target.values if count else target.values.new_zeros(1)
                found = self.token_losses(
                    ids.unsqueeze(0), logits.float().unsqueeze(1), self.real_vocab_size
                )
                outputs[name] = found.flatten()[:count]
            else:
                whole = gather_from_tensor_model_parallel_region(
                    logits.float(), group=self.pg_collection.tp
                )
                outputs[name] = whole[:count, : self.real_vocab_size].log_softmax(-1)
        return outputs


@dataclass(frozen=True)
class TextLoss(NextToken):
    def values(self, outputs: Outputs, batch: MicroBatch, teacher: Outputs) -> Tensor:
        return outputs[NEXT_TOKEN]


@dataclass(frozen=True)
class Regression(TargetTerm):
    """Mean square over the width of a vector."""

    def values(self, outputs: Outputs, batch: MicroBatch, teacher: Outputs) -> Tensor:
        return (outputs[VECTOR] - batch.targets[VECTOR].values).square().mean(-1)


@dataclass(frozen=True)
class Divergence(TargetTerm):
    """KL(teacher || model) over the vocabulary."""

    def values(self, outputs: Outputs, batch: MicroBatch, teacher: Outputs) -> Tensor:
        ours, theirs = outputs[TEACHER], teacher[TEACHER]
        return (theirs.exp() * (theirs - ours)).sum(-1)


def build(config: Config, parallel: Parallel, virtual_stage: int) -> PackedGPTModel:
    return ToyModel(config, parallel, virtual_stage)


def forward(model: torch.nn.Module, batch: MicroBatch, aia: AIAContext | None) -> Tensor | Outputs:
    output: Any = model(
        batch.tokens,
        batch.position_ids,
        packed_causal_mask(batch.segment_ids) if aia is None else None,
        lane=batch.lane,
        targets=batch.targets if is_last_chunk(model) else None,
        extra_block_kwargs=None if aia is None else {"attention_bias": aia},
    )
    return output


def losses(config: Config) -> tuple[LossTerm, ...]:
    model = toy_model(config)
    terms: tuple[LossTerm, ...] = (
        TextLoss(normalization="token"),
        Regression("vec", VECTOR, model.vector_loss_weight, "sample"),
    )
    if model.teacher_loss_weight:
        divergence = Divergence("kl", TEACHER, model.teacher_loss_weight, needs_teacher=True)
        terms = (*terms, divergence)
    return terms


def encoder(
    config: Config, tokenizer: TextTokenizer, images: ImageTokenizer | None = None
) -> ToySampleEncoder:
    model = toy_model(config)
    return ToySampleEncoder(
        tokenizer, model.text_vocab_size, model.codebook_size, model.vector_size
    )


SPEC = ModelSpec(name="toy", build=build, forward=forward, losses=losses, encoder=encoder)
