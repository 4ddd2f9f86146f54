"""The decoder shared by the models: a LLaMA-shaped megatron-core GPTModel for packed sequences."""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import unwrap_model

from megatron_aia.attention.decoding import DecodeState
from megatron_aia.config import Config
from megatron_aia.models.fp8 import fp8_options
from megatron_aia.models.heads import columns_of_rank, gather_columns
from megatron_aia.models.layers import layer_specs
from megatron_aia.runtime.device import compute_capability, transformer_engine_version
from megatron_aia.runtime.mcore import decoder_options
from megatron_aia.runtime.parallel import Parallel


def transformer_config(config: Config, parallel: Parallel) -> TransformerConfig:
    """Translate the configuration into megatron-core's.

    ``calculate_per_token_loss`` makes gradients plain sums over micro-batches and data-parallel
    ranks: every normaliser of this project is already in the loss.
    """
    model, layout = config.model, config.parallel
    interleaved = parallel.virtual_stages > 1
    dtype = torch.bfloat16 if config.training.bf16 else torch.float32
    recompute: dict[str, Any] = {"recompute_granularity": layout.recompute_granularity}
    if layout.recompute_granularity == "full":
        recompute["recompute_method"] = layout.recompute_method
        recompute["recompute_num_layers"] = layout.recompute_num_layers
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.head_size,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_epsilon,
        add_bias_linear=False,
        add_qkv_bias=model.add_qkv_bias,
        attention_dropout=model.attention_dropout,
        hidden_dropout=model.hidden_dropout,
        init_method_std=model.init_method_std,
        bf16=config.training.bf16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=parallel.tensor_size,
        pipeline_model_parallel_size=parallel.pipeline_size,
        context_parallel_size=parallel.context_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_stages if interleaved else None,
        sequence_parallel=layout.sequence_parallel and parallel.tensor_size > 1,
        calculate_per_token_loss=True,
        # The next stage learns the length of a micro-batch from the one before.
        variable_seq_lengths=config.data.variable_seq_lengths,
        # There are no experts here, but the default is refused beside variable lengths.
        moe_token_dispatcher_type="alltoall",
        # Batched p2p mixes up the two neighbours where they are one process: interleaving on two
        # stages would train on wrong activations, without an error.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        **recompute,
        **fp8_options(config, compute_capability(), transformer_engine_version()),
        **decoder_options(interleaved, config.training.bf16),
    )


EMBEDDING_WEIGHT = "embedding.word_embeddings.weight"
OUTPUT_WEIGHT = "output_layer.weight"


class PackedGPTModel(GPTModel):
    """GPTModel for packed sequences and a padded vocabulary.

    Three things differ. Rotary angles follow ``position_ids``, which restart with every sample
    (megatron-core counts along the sequence) and are cut like the tokens where several ranks share
    a sequence. And the columns that pad the vocabulary to a multiple of
    the tensor-parallel size take no part in the softmax, so the loss does not depend on it.
    A model that decodes, which a ``DecodeState`` as ``attention_bias`` says, returns the last
    stage's hidden state of the last token, ``[b, h]``.

    Args:
        real_vocab_size: ids below this are real; the rest of ``vocab_size`` is padding.
    """

    blocks: tuple[str, ...] = ("decoder",)
    """Names of the stacks of decoder layers, whose layers know their number in the whole model."""

    def __init__(self, *args: Any, real_vocab_size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.real_vocab_size = real_vocab_size
        # Built with the rotary embedding, but it must not compute angles along the sequence: they
        # are of no use here, and cutting them for context parallelism needs CUDA.
        self.position_embedding_type = "none"

    def real_sizes(self) -> dict[str, int]:
        """Return the rows without padding of every parameter that has some: name to rows."""
        return dict.fromkeys((EMBEDDING_WEIGHT, OUTPUT_WEIGHT), self.real_vocab_size)

    def fresh_deviations(self) -> dict[str, float]:
        """Return the standard deviation of fresh weights that have one of their own, by name."""
        return {}

    def copies(self) -> dict[str, str]:
        """Return the parameters of the last stage that are equal to one of the first, by name."""
        tied = {OUTPUT_WEIGHT: EMBEDDING_WEIGHT}
        return tied if self.share_embeddings_and_output_weights else {}

    def _preprocess(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, **kwargs: Any
    ) -> Any:
        prepared = super()._preprocess(input_ids, position_ids, **kwargs)
        decoder_input, _, *rest = prepared
        if decoder_input is not None and self.training and not decoder_input.requires_grad:
            # Recomputed layers get no gradient at all from an input that needs none.
            decoder_input = decoder_input.requires_grad_()
        return (decoder_input, self._rotary_angles(position_ids), *rest)

    def _rotary_angles(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Return ``[s, b, 1, head_size]`` angles, halves repeated, from positions ``[b, s]``."""
        frequencies = self.rotary_pos_emb.inv_freq.to(position_ids.device)
        angles = position_ids.t().unsqueeze(-1).to(frequencies.dtype) * frequencies
        return torch.cat((angles, angles), dim=-1).unsqueeze(2)

    def _postprocess(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.post_process and is_decoding(kwargs.get("extra_block_kwargs")):
            return hidden_states[-1]
        output: torch.Tensor = super()._postprocess(hidden_states, *args, **kwargs)
        return output

    def vocabulary_logits(self, hidden: torch.Tensor, ids: range) -> torch.Tensor:
        """Return the logits of ``ids`` of the last stage's head, on every tensor-parallel rank.

        Args:
            hidden: ``[b, h]``, what a decoding model returns.
            ids: of the vocabulary; no other column is computed.

        Returns:
            float32 ``[b, len(ids)]``.
        """
        weight = self.output_layer.weight
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()
        group, width = self.pg_collection.tp, weight.shape[0]
        held = columns_of_rank(ids, width, group.rank())
        local = torch.nn.functional.linear(hidden, weight[held])
        return gather_columns(local, ids, width, group)

    def compute_language_model_loss(
        self, labels: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """Return the negative log-likelihood ``[b, s]`` of ``labels`` under ``[s, b, v/tp]``."""
        return self.token_losses(labels, logits, self.real_vocab_size)

    def token_losses(
        self, labels: torch.Tensor, logits: torch.Tensor, real_size: int
    ) -> torch.Tensor:
        """Return the same where ids from ``real_size`` on are padding; changes ``logits``."""
        local_size = logits.shape[-1]
        real = max(0, min(local_size, real_size - local_size * self.pg_collection.tp.rank()))
        if real < local_size:
            # In place: a copy of the logits would be the largest tensor of the step.
            logits[..., real:] = torch.finfo(logits.dtype).min
        return super().compute_language_model_loss(labels, logits)


def padded_vocab_size(config: Config, size: int, tensor_parallel_size: int) -> int:
    """Round ``size`` up to Megatron-LM's multiple."""
    multiple = config.model.make_vocab_size_divisible_by * tensor_parallel_size
    return -(-size // multiple) * multiple


def decoder_arguments(
    config: Config, parallel: Parallel, virtual_stage: int, vocab_size: int
) -> dict[str, Any]:
    """Return the arguments of ``PackedGPTModel`` for one chunk of this pipeline stage."""
    core = transformer_config(config, parallel)
    return {
        "config": core,
        "transformer_layer_spec": layer_specs(config, core, virtual_stage),
        "vocab_size": padded_vocab_size(config, vocab_size, parallel.tensor_size),
        "real_vocab_size": vocab_size,
        "max_sequence_length": config.model.max_position_embeddings,
        "pre_process": parallel.has_embedding(virtual_stage),
        "post_process": parallel.has_output(virtual_stage),
        "parallel_output": True,
        "share_embeddings_and_output_weights": (
            not config.model.untie_embeddings_and_output_weights
        ),
        "position_embedding_type": "rope",
        "rotary_base": config.model.rotary_base,
        "pg_collection": parallel.groups,
        "vp_stage": virtual_stage if parallel.virtual_stages > 1 else None,
    }


def is_decoding(extra_block_kwargs: dict[str, Any] | None) -> bool:
    """Return whether a forward's extra arguments are those of a model that writes."""
    return isinstance((extra_block_kwargs or {}).get("attention_bias"), DecodeState)


def is_last_chunk(model: torch.nn.Module) -> bool:
    """Return whether a model chunk, wrapped or not, is the one that computes the outputs."""
    return bool(unwrap_model(model).post_process)


def packed_causal_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """Return megatron-core's mask ``[b, 1, s, s]`` of packed sequences: True where attention is
    barred.

    Padding attends to padding before it: no row of the softmax is empty, and no loss sees it.
    """
    same = segment_ids.unsqueeze(2) == segment_ids.unsqueeze(1)
    length = segment_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    return ~(same & causal).unsqueeze(1)
