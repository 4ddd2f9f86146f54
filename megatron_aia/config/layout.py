"""How a run is laid out over processes."""

import math
from dataclasses import replace

from megatron_aia.config.tree import Config, ModelConfig, ParallelConfig

_ROW_STEP = 64
"""Variable lengths grow by so many tokens: whole tiles of kernels, and few shapes of tensors."""


def fit_layout(config: Config, world_size: int) -> Config:
    """Return a copy of ``config`` whose unset tensor and pipeline sizes fit ``world_size``.

    An unset size becomes 2 where processes and model allow it, and 1 otherwise: tensor first,
    then pipeline. What is left is data parallel, so 8 processes become 2 x 2 x 2. Sizes that are
    set stay as they are, fitting or not: to judge them is the work of ``validate``.
    """
    parallel = config.parallel
    tensor = parallel.tensor_model_parallel_size
    pipeline = parallel.pipeline_model_parallel_size
    free = world_size // max((tensor or 1) * (pipeline or 1) * parallel.context_parallel_size, 1)
    if tensor is None:
        tensor = 2 if free % 2 == 0 and _halves(config.model) else 1
        free //= tensor
    if pipeline is None:
        pipeline = 2 if free % 2 == 0 and _allows_two_stages(config.model, parallel) else 1
    fitted = replace(
        parallel, tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline
    )
    return replace(config, parallel=fitted)


def data_parallel_size(config: Config, world_size: int) -> int:
    """Return how many replicas of the model ``world_size`` processes hold."""
    tensor, pipeline, context = config.parallel.layout
    return world_size // (tensor * pipeline * context)


def length_multiple(config: Config) -> int:
    """Return what the length of a variable-length sequence is a multiple of, in tokens.

    The processes that share a sequence, or the residuals of a sequence, split it evenly then.
    """
    tensor, _, context = config.parallel.layout
    shares = tensor if config.parallel.sequence_parallel else 1
    if context > 1:
        shares *= 2 * context
    return math.lcm(_ROW_STEP, shares)


def _halves(model: ModelConfig) -> bool:
    split = (model.num_attention_heads, model.num_query_groups, model.ffn_hidden_size)
    return all(size % 2 == 0 for size in split)


def _allows_two_stages(model: ModelConfig, parallel: ParallelConfig) -> bool:
    chunk = parallel.num_layers_per_virtual_pipeline_stage or 1
    return model.num_layers % (2 * chunk) == 0
