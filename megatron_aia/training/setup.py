"""Building the parts of a run, in order: data, model, optimizer."""

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.module import Float16Module

from megatron_aia.config import Config
from megatron_aia.data.images import ImageTokenizer, load_image_tokenizer
from megatron_aia.data.loader import GlobalBatches
from megatron_aia.data.open import open_batches
from megatron_aia.models.initialize import initialize_weights
from megatron_aia.models.spec import ModelSpec
from megatron_aia.runtime.device import device
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.training.freeze import freeze_parameters
from megatron_aia.training.step import sum_gradients


def build_data(config: Config, spec: ModelSpec, parallel: Parallel) -> GlobalBatches:
    """Open the shards for this rank and check every sample against the row length.

    Raises:
        ValueError: data or tokeniser are missing, damaged, or do not fit the model.
    """
    return open_data(
        config,
        spec,
        data_rank=parallel.data_rank,
        data_size=parallel.data_size,
        micro_batch_multiple=parallel.pipeline_size if parallel.virtual_stages > 1 else 1,
        # Decoding pictures takes time, and only the first stage looks at them.
        has_images=parallel.has_embedding(0),
    )


def open_data(
    config: Config,
    spec: ModelSpec,
    data_rank: int = 0,
    data_size: int = 1,
    micro_batch_multiple: int = 1,
    has_images: bool = True,
) -> GlobalBatches:
    """As ``build_data``, for one of ``data_size`` ranks; without process groups.

    Raises:
        ValueError: data or tokeniser are missing, damaged, or do not fit the model.
    """
    return open_batches(
        config,
        make_prompt=lambda tokenizer: spec.prompt(config, tokenizer, _image_tokenizer(config)),
        pad_id=spec.pad_id(config),
        image_size=config.model.image_size if has_images else 0,
        data_rank=data_rank,
        data_size=data_size,
        micro_batch_multiple=micro_batch_multiple,
    )


def _image_tokenizer(config: Config) -> ImageTokenizer | None:
    """Load what makes codes while the run reads its samples, on this process's device."""
    path = config.data.image_tokenizer
    if path is None:
        return None
    # A model that draws images of one size has them encoded at that size.
    image_area = config.model.image_size**2 or None
    try:
        # Loading draws weights before it replaces them; the run's own random states stay.
        with torch.random.fork_rng(devices=[]):
            tokenizer = load_image_tokenizer(path, image_area, str(device()))
    except ValueError as error:
        raise ValueError(f"--image-tokenizer {path} cannot be used: {error}") from None
    if tokenizer.codebook_size != config.model.codebook_size:
        raise ValueError(
            f"--image-tokenizer {path} has a codebook of {tokenizer.codebook_size}, and "
            f"--codebook-size is {config.model.codebook_size}; name the model's own image tokeniser"
        )
    return tokenizer


def build_models(
    config: Config, spec: ModelSpec, parallel: Parallel, fresh_weights: bool = True
) -> list[DistributedDataParallel]:
    """Build this process's model chunks, wrapped for mixed precision and data parallelism.

    Args:
        config: of the run.
        spec: of the model family.
        parallel: of the run.
        fresh_weights: draw them; False where a checkpoint replaces them all.

    Raises:
        ValueError: on every rank, if --freeze fits nothing or leaves a stage nothing to train.
    """
    chunks = [spec.build(config, parallel, stage) for stage in range(parallel.virtual_stages)]
    freeze_parameters(chunks, config.training.freeze, parallel)
    models: list[DistributedDataParallel] = []
    for virtual_stage, model in enumerate(chunks):
        if fresh_weights:
            initialize_weights(model, config)
        core: Any = model.config
        chunk: Any = model.to(device())
        if config.training.bf16:
            chunk = Float16Module(core, chunk)
        models.append(
            DistributedDataParallel(
                core,
                _data_parallel_config(config),
                chunk,
                # Only the first chunk's gradients are known early enough to overlap by buckets.
                disable_bucketing=virtual_stage > 0,
                pg_collection=parallel.groups,
            )
        )
    core = models[0].config  # the one the schedule reads
    core.finalize_model_grads_func = sum_gradients
    if config.parallel.overlap_grad_reduce:
        no_sync = [model.no_sync for model in models]
        core.no_sync_func = no_sync if len(models) > 1 else no_sync[0]
    return models


def _data_parallel_config(config: Config) -> DistributedDataParallelConfig:
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        overlap_param_gather=config.parallel.overlap_param_gather,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
        average_in_collective=False,
    )
