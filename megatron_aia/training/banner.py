"""What a run says of itself before its first step: which parts are really in use."""

from collections.abc import Sequence

import megatron.core.optimizer as mcore_optimizer
import torch

from megatron_aia.config import Config
from megatron_aia.models.layers import uses_transformer_engine
from megatron_aia.runtime.device import describe
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.training.model_size import ModelSize, describe_size, draw_layout


def describe_run(
    config: Config,
    parallel: Parallel,
    models: Sequence[torch.nn.Module],
    size: ModelSize,
    notes: dict[str, str],
) -> list[tuple[str, str]]:
    """Return (label, text) lines for the start of the log.

    Args:
        config: of the run.
        parallel: of the run.
        models: chunks of this process.
        size: of the whole model.
        notes: further labels and texts, put before the last line.
    """
    tensor, pipeline, context = config.parallel.layout
    layout = f"TP {tensor} x PP {pipeline} x CP {context} x DP {parallel.data_size}"
    if parallel.virtual_stages > 1:
        layout += f", {parallel.virtual_stages} chunks a stage"
    adam = mcore_optimizer.Adam
    return [
        ("machine", describe()),
        ("layout", "\n".join([layout, *draw_layout(parallel, config.model.num_layers)])),
        *describe_size(config, size, parallel),
        ("layers", "Transformer Engine" if uses_transformer_engine(config) else "megatron-core"),
        ("attention", _attention(models[0])),
        ("optimizer", f"{adam.__module__}.{adam.__name__}"),
        *notes.items(),
        ("saving to", config.checkpoint.save or "nowhere (--save is not set)"),
    ]


def _attention(model: torch.nn.Module) -> str:
    """Return the class of the core attention; its method, if it has one, and why that."""
    for module in model.modules():
        if hasattr(module, "core_attention"):
            core = module.core_attention
            method = getattr(core, "method", None)
            return f"{type(core).__name__} ({method})" if method else type(core).__name__
    return "no layer on this pipeline stage"
