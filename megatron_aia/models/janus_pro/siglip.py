"""SigLIP's vision transformer from megatron-core's layers, so that it takes tensor parallelism.

The layers are the plain ones whatever ``--transformer-impl`` says: the tower is frozen by default
and small beside the decoder. It runs on the first pipeline stage, never recomputed.
"""

from typing import Any, Optional

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megatron_aia.models.janus_pro.settings import JanusModelConfig
from megatron_aia.models.norm import LayerNorm
from megatron_aia.runtime.mcore import transformer_options

_NORM_EPSILON = 1e-6
_NUM_COLOURS = 3


class SiglipTower(MegatronModule):
    """Images to features: the last layer's output after the final norm, one feature a patch.

    Args:
        model: sizes of the tower.
        core: the decoder's configuration; types and tensor parallelism are the same.
        groups: process groups of the run.
    """

    def __init__(
        self, model: JanusModelConfig, core: TransformerConfig, groups: ProcessGroupCollection
    ) -> None:
        config = _tower_config(model, core)
        super().__init__(config=config)
        self.image_size = model.image_size
        width, patch = model.vision_hidden_size, model.patch_size
        dtype = config.params_dtype
        self.patch_embedding = torch.nn.Conv2d(
            _NUM_COLOURS, width, kernel_size=patch, stride=patch, dtype=dtype
        )
        self.position_embedding = torch.nn.Parameter(
            torch.empty(model.image_slots, width, dtype=dtype)
        )
        self.encoder = TransformerBlock(
            config=config,
            spec=TransformerBlockSubmodules(
                layer_specs=[_layer_spec()] * config.num_layers, layer_norm=LayerNorm
            ),
            pg_collection=groups,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``[n, patches, width]`` of uint8 images ``[n, 3, side, side]``.

        Colours go to [-1, 1], as SigLIP was trained. Patches count row by row.
        """
        pixels = (images.float() / 255 - 0.5) / 0.5
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))
        embedded = patches.flatten(2).transpose(1, 2) + self.position_embedding
        features = self.encoder(embedded.transpose(0, 1).contiguous(), attention_mask=None)
        return features.transpose(0, 1)


class BidirectionalAttention(MegatronModule):
    """Every patch attends to every patch of its image; megatron-core's core-attention interface."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Optional[Any] = None,
        attention_type: Optional[str] = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Optional[Tensor],
        **_: Any,
    ) -> Tensor:
        """Attend from ``[s, b, h, d]`` heads of this rank; returns ``[s, b, h * d]``."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        output = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return output.permute(2, 0, 1, 3).flatten(2)


def _tower_config(model: JanusModelConfig, core: TransformerConfig) -> TransformerConfig:
    return TransformerConfig(
        num_layers=model.vision_num_layers,
        hidden_size=model.vision_hidden_size,
        ffn_hidden_size=model.vision_ffn_hidden_size,
        num_attention_heads=model.vision_num_attention_heads,
        activation_func=torch.nn.functional.gelu,
        normalization="LayerNorm",
        layernorm_epsilon=_NORM_EPSILON,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bf16=core.bf16,
        params_dtype=core.params_dtype,
        tensor_model_parallel_size=core.tensor_model_parallel_size,
        calculate_per_token_loss=core.calculate_per_token_loss,
        **transformer_options(interleaved=False),
    )


def _layer_spec() -> ModuleSpec:
    attention = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=BidirectionalAttention,
        linear_proj=RowParallelLinear,
    )
    mlp = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=LayerNorm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.no_mask},
                submodules=attention,
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=LayerNorm,
            mlp=ModuleSpec(module=MLP, submodules=mlp),
            mlp_bda=get_bias_dropout_add,
        ),
    )
