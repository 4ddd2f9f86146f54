"""Small layers of whole sequences around the decoder, without sequence parallelism."""

import torch
from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_aia.runtime.mcore import transformer_options


def whole_config(core: TransformerConfig) -> TransformerConfig:
    """Return the configuration of these layers; they take no part in sequence parallelism."""
    return TransformerConfig(
        num_layers=1,
        hidden_size=core.hidden_size,
        ffn_hidden_size=core.hidden_size,
        num_attention_heads=core.num_attention_heads,
        activation_func=torch.nn.functional.gelu,
        bf16=core.bf16,
        params_dtype=core.params_dtype,
        tensor_model_parallel_size=core.tensor_model_parallel_size,
        calculate_per_token_loss=core.calculate_per_token_loss,
        **transformer_options(interleaved=False),
    )


def projector(
    core: TransformerConfig, input_size: int, groups: ProcessGroupCollection
) -> MultimodalProjector:
    """Return two layers with GELU between them, ``[..., input_size]`` to ``[..., hidden_size]``.

    They are split over the tensor-parallel ranks; input and output are whole on each.
    """
    layers = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    return MultimodalProjector(whole_config(core), layers, "mlp", input_size, groups.tp)
