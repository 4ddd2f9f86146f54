"""Small layers around the decoder, of whole sequences: into its width, out to image codes."""

from typing import Any, Optional

import torch
from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_aia.runtime.mcore import transformer_options


class GenerationHead(MegatronModule):
    """Hidden states to logits of image codes; the codes are split over tensor-parallel ranks.

    The first matrix is whole on every rank: it is small, and splitting it would add a gather.
    """

    def __init__(
        self, core: TransformerConfig, codebook_size: int, groups: ProcessGroupCollection
    ) -> None:
        config = _config(core)
        super().__init__(config=config)
        width = config.hidden_size
        self.projection = torch.nn.Linear(width, width, dtype=config.params_dtype)
        self.output = ColumnParallelLinear(
            width,
            codebook_size,
            config=config,
            init_method=config.init_method,
            tp_group=groups.tp,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits ``[..., codes / tp]`` of hidden states ``[..., hidden_size]``."""
        logits, _ = self.output(torch.nn.functional.gelu(self.projection(hidden)))
        return logits

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Any, ...] = (),
        metadata: Optional[dict[str, Any]] = None,
    ) -> dict[str, Any]:
        """Return megatron-core's form of the weights for a checkpoint of any layout.

        How many rows pad the codes depends on the tensor-parallel size, as for a vocabulary.
        """
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for name in ("weight", "bias"):
            state[f"{prefix}output.{name}"].allow_shape_mismatch = True
        return state


def _config(core: TransformerConfig) -> TransformerConfig:
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
    return MultimodalProjector(_config(core), layers, "mlp", input_size, groups.tp)
