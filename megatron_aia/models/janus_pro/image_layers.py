"""Small layers around the decoder, of whole sequences: into its width, out to image codes."""

from typing import Any, Optional

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_aia.models.whole_layers import whole_config


class GenerationHead(MegatronModule):
    """Hidden states to logits of image codes; the codes are split over tensor-parallel ranks.

    The first matrix is whole on every rank: it is small, and splitting it would add a gather.
    """

    def __init__(
        self, core: TransformerConfig, codebook_size: int, groups: ProcessGroupCollection
    ) -> None:
        config = whole_config(core)
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
