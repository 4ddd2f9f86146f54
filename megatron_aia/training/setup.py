"""Building the parts of a run, in order: data, model, optimizer."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer.module import Float16Module

from megatron_aia.analysis.records import AIA_TERM
from megatron_aia.config import Config
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.open import open_batches
from megatron_aia.data.sample import SampleEncoder
from megatron_aia.models.image_tokenizers import load_image_tokenizer
from megatron_aia.models.initialize import initialize_weights
from megatron_aia.models.losses import LossTerm
from megatron_aia.models.spec import ModelSpec
from megatron_aia.runtime.device import device
from megatron_aia.runtime.parallel import Parallel, broadcast_failure
from megatron_aia.shards.image_tokenizer import ImageTokenizer
from megatron_aia.training.freeze import freeze_parameters
from megatron_aia.training.step import sum_gradients
from megatron_aia.training.teacher import Teacher


def build_data(config: Config, spec: ModelSpec, parallel: Parallel) -> StepLoader:
    """Open the shards for this rank and check every sample against the sequence length.

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
        loads_images=parallel.has_embedding(0),
    )


def open_data(
    config: Config,
    spec: ModelSpec,
    data_rank: int = 0,
    data_size: int = 1,
    micro_batch_multiple: int = 1,
    loads_images: bool = True,
) -> StepLoader:
    """As ``build_data``, for one of ``data_size`` ranks; without process groups.

    Raises:
        ValueError: data or tokeniser are missing, damaged, or do not fit the model.
    """
    return open_batches(
        config,
        make_encoder=lambda tokenizer: spec.encoder(
            config, tokenizer, _image_tokenizer(config, spec)
        ),
        loads_images=loads_images,
        data_rank=data_rank,
        data_size=data_size,
        micro_batch_multiple=micro_batch_multiple,
    )


def open_data_in_turn(config: Config, spec: ModelSpec, parallel: Parallel) -> StepLoader:
    """As ``build_data``, on rank 0 first: it fills the caches that the other ranks then read.

    Raises:
        ValueError: on every rank.
    """
    data: StepLoader | None = None
    for opens_now in (dist.get_rank() == 0, dist.get_rank() != 0):
        error: Exception | None = None
        if opens_now:
            try:
                data = build_data(config, spec, parallel)
            except (ValueError, OSError) as caught:
                error = ValueError(str(caught))
        broadcast_failure(error, parallel.control)
    assert data is not None
    return data


def _image_tokenizer(config: Config, spec: ModelSpec) -> ImageTokenizer | None:
    """Load what makes codes while the run reads its samples, on this process's device."""
    path = config.data.image_tokenizer
    if path is None:
        return None
    try:
        # Loading draws weights before it replaces them; the run's own random states stay.
        with torch.random.fork_rng(devices=[]):
            tokenizer = load_image_tokenizer(path, spec.image_area(config), str(device()))
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


def loss_terms(config: Config, spec: ModelSpec, encoder: SampleEncoder) -> tuple[LossTerm, ...]:
    """Return what the run learns.

    Raises:
        ValueError: two terms have one name, or a term learns a target that no sample has.
    """
    terms = spec.losses(config)
    names = [term.name for term in terms]
    for term in terms:
        if names.count(term.name) > 1 or term.name == AIA_TERM:
            raise ValueError(f"--model {spec.name}: two loss terms have the name {term.name}")
        if term.target not in encoder.targets:
            raise ValueError(
                f"--model {spec.name}: the loss term {term.name} learns the target {term.target}, "
                f"and its samples have {', '.join(encoder.targets)}"
            )
    return terms


def build_teacher(
    config: Config, spec: ModelSpec, parallel: Parallel, terms: Sequence[LossTerm]
) -> Teacher | None:
    """Build the frozen teacher if a loss term asks for one.

    Raises:
        ValueError: on every rank, if it cannot be loaded, or is named and no term asks for it.
    """
    if any(term.needs_teacher for term in terms):
        return Teacher(config, spec, parallel, terms)
    if config.checkpoint.teacher_checkpoint is not None:
        raise ValueError(
            f"--teacher-checkpoint {config.checkpoint.teacher_checkpoint}: no loss term of --model "
            f"{spec.name} asks for a teacher; leave it out"
        )
    return None


def _data_parallel_config(config: Config) -> DistributedDataParallelConfig:
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        overlap_param_gather=config.parallel.overlap_param_gather,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
        average_in_collective=False,
    )
