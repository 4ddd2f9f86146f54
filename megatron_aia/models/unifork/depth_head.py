"""The head that predicts the codes of an image token one after the other.

::

    x_0 = in_hidden(hidden)      x_i = in_codes(sum of the vectors of codes 0 .. i-1)
    x = x + position_i           then layers: x += attention(x), x += mlp(x), causal over the codes
    logits_i = classifier(norm(x_i))

Its attention is wider than the decoder. Heads, MLP and classifier are split over tensor-parallel
ranks; what goes between the decoder's width and the heads is whole on each.
"""

from typing import Any, Optional

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_aia.models.norm import LayerNorm
from megatron_aia.models.unifork.settings import UniForkModelConfig
from megatron_aia.models.whole_layers import whole_config

_NORM_EPSILON = 1e-5


class DepthHead(MegatronModule):
    """Hidden states and codes to logits of the codes.

    Args:
        core: of the decoder.
        model: architecture.
        padded_codes: ids of the classifier with its padding.
        groups: of the run.
    """

    def __init__(
        self,
        core: TransformerConfig,
        model: UniForkModelConfig,
        padded_codes: int,
        groups: ProcessGroupCollection,
    ) -> None:
        config = whole_config(core)
        super().__init__(config=config)
        width, dtype = config.hidden_size, config.params_dtype
        self.in_hidden = torch.nn.Linear(width, width, dtype=dtype)
        self.in_codes = torch.nn.Linear(model.code_channels, width, dtype=dtype)
        self.position = torch.nn.Parameter(torch.zeros(model.code_depth, width, dtype=dtype))
        self.layers = torch.nn.ModuleList(
            DepthLayer(config, model, groups) for _ in range(model.depth_num_layers)
        )
        self.norm = LayerNorm(config, width, _NORM_EPSILON)
        self.classifier = ColumnParallelLinear(
            width, padded_codes, config=config, init_method=config.init_method, tp_group=groups.tp
        )

    def forward(self, hidden: Tensor, vectors: Tensor) -> Tensor:
        """Return this rank's columns of the logits.

        Args:
            hidden: ``[n, h]``, of the positions that predict an image token each.
            vectors: ``[n, d, channels]``, of the codes that are known; the last of ``code_depth``
                predicts nothing and may be there or not.

        Returns:
            ``[n, min(d + 1, code_depth), padded codes / tp]``.
        """
        known = vectors[:, : len(self.position) - 1]
        entries = self.in_hidden(hidden).unsqueeze(1)
        if known.shape[1]:
            sums = known.to(entries.dtype).cumsum(dim=1)
            entries = torch.cat([entries, self.in_codes(sums)], dim=1)
        entries = entries + self.position[: entries.shape[1]]
        for layer in self.layers:
            entries = layer(entries)
        logits, _ = self.classifier(self.norm(entries))
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
        layers: Any = self.layers
        for i, layer in enumerate(layers):
            # megatron-core takes the weights of a list of layers for whole ones.
            state |= layer.sharded_state_dict(f"{prefix}layers.{i}.", sharded_offsets, metadata)
        for name in ("weight", "bias"):
            state[f"{prefix}classifier.{name}"].allow_shape_mismatch = True
        return state


class DepthLayer(MegatronModule):
    """Attention over the codes of one image token, and an MLP; norms before both."""

    def __init__(
        self,
        config: TransformerConfig,
        model: UniForkModelConfig,
        groups: ProcessGroupCollection,
    ) -> None:
        super().__init__(config=config)
        width, wide = config.hidden_size, model.depth_attention_size
        ffn = model.depth_ffn_hidden_size
        self.num_heads = model.depth_num_attention_heads // groups.tp.size()
        common: dict[str, Any] = {
            "config": config,
            "init_method": config.init_method,
            "bias": True,
            "skip_bias_add": False,
            "tp_group": groups.tp,
        }
        row = {**common, "input_is_parallel": True}
        self.input_norm = LayerNorm(config, width, _NORM_EPSILON)
        self.attention_in = torch.nn.Linear(width, wide, dtype=config.params_dtype)
        for name in ("query", "key", "value"):
            setattr(self, name, ColumnParallelLinear(wide, wide, gather_output=False, **common))
        self.attention_proj = RowParallelLinear(wide, wide, **row)
        self.attention_out = torch.nn.Linear(wide, width, dtype=config.params_dtype)
        self.mlp_norm = LayerNorm(config, width, _NORM_EPSILON)
        self.mlp_in = ColumnParallelLinear(width, ffn, gather_output=False, **common)
        self.mlp_out = RowParallelLinear(ffn, width, **row)

    def forward(self, entries: Tensor) -> Tensor:
        """Return ``[n, d, width]`` of ``[n, d, width]``."""
        wide = self.attention_in(self.input_norm(entries))
        query, key, value = (
            getattr(self, name)(wide)[0].unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected, _ = self.attention_proj(mixed.transpose(1, 2).flatten(2))
        entries = entries + self.attention_out(projected)
        inner, _ = self.mlp_in(self.mlp_norm(entries))
        outer, _ = self.mlp_out(torch.nn.functional.gelu(inner))
        total: Tensor = entries + outer
        return total
