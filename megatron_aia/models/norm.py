"""Norms with megatron-core's interface, where Transformer Engine is not in use."""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.Module):
    """``x / rms(x) * weight`` over the last dimension; megatron-core's norm interface.

    megatron-core's own wrapper of torch's norm refuses sequence parallelism. There, each rank holds
    a slice of the sequence, so the weight's gradient must be summed over the tensor-parallel group:
    the mark on the weight asks megatron-core to do it.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` of shape ``[..., hidden_size]``."""
        return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm with weights in the model's type; not for sequence parallelism."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__(hidden_size, eps, dtype=config.params_dtype)
