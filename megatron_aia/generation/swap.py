"""Lets a model write for a while, also one that trains, and leaves it as it was."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from megatron.core.utils import unwrap_model

from megatron_aia.attention.decoding import CachedCoreAttention

_SEQUENCE_PARALLEL = (
    "sequence_parallel",
    "scatter_to_sequence_parallel",
    "reduce_scatter_embeddings",
)
"""Attributes by which megatron-core's modules split activations over tensor-parallel ranks."""


@contextmanager
def decoding(models: Sequence[Any]) -> Iterator[list[Any]]:
    """Give the unwrapped chunks, whose layers keep keys and values, for the time of the block.

    No dropout, no sequence parallelism (a step has one token), no FP8 (it needs more rows than one
    token has). Weights must be whole: ``gather_parameters`` comes first where they are shared out.

    Args:
        models: chunks of this process, wrapped or not.
    """
    chunks = [unwrap_model(model) for model in models]
    with ExitStack() as restore, torch.no_grad():
        for model in models:
            restore.callback(model.train, model.training)
            model.eval()
        for chunk in chunks:
            _prepare(chunk, restore)
        yield chunks


def _prepare(chunk: Any, restore: ExitStack) -> None:
    _set(chunk.config, "fp8", None, restore)
    _set(chunk.config, "sequence_parallel", False, restore)
    for module in chunk.modules():
        for name in _SEQUENCE_PARALLEL:
            if getattr(module, name, None) is True:
                _set(module, name, False, restore)
    for number, block in enumerate(chunk.blocks):
        for layer in chunk.get_submodule(block).layers:
            # One, or where the model forks one of each branch.
            for attention in [m for m in layer.modules() if hasattr(m, "core_attention")]:
                cached = CachedCoreAttention(attention.config, layer.layer_number, number)
                _set(attention, "core_attention", cached, restore)


def _set(owner: Any, name: str, value: Any, restore: ExitStack) -> None:
    restore.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
