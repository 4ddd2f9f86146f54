"""What travels with a micro-batch through the layers of a model that forks."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Way:
    """Which way a micro-batch takes, and what its core attentions get.

    megatron-core hands it to each layer as ``attention_bias``.
    """

    lane: int
    """See ``SampleEncoder.lane``."""
    attention_bias: Any = None
    """``AIAContext``, ``DecodeState`` or None."""


def without_way(attention_bias: Any) -> Any:
    """Return what the core attentions get, whether or not the model forks."""
    return attention_bias.attention_bias if isinstance(attention_bias, Way) else attention_bias
