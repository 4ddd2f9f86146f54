"""Checks of architecture and layout; each raises ValueError naming flag, value and remedy."""

import math

from megatron_aia.config.settings import flag
from megatron_aia.config.tree import Config


def check_model_settings(config: Config, has_gpu: bool) -> None:
    """Check heads, head size, dropout and implementation of the decoder."""
    model = config.model
    heads, groups = model.num_attention_heads, model.num_query_groups
    if heads % groups:
        raise ValueError(
            f"--num-query-groups {groups} does not divide --num-attention-heads {heads}; "
            f"use {alternatives(heads)}"
        )
    if model.kv_channels is None and model.hidden_size % heads:
        raise ValueError(
            f"--num-attention-heads {heads} does not divide --hidden-size {model.hidden_size}; "
            "change one of them, or give the head size with --kv-channels"
        )
    if model.head_size % 2:
        raise ValueError(
            f"the head size {model.head_size} is odd, and the rotary embedding turns pairs of "
            f"channels; use --kv-channels {model.head_size + 1}"
        )
    if config.aia.aia and model.attention_dropout > 0:
        raise ValueError(
            f"--attention-dropout {model.attention_dropout} cannot be used with AIA, which aligns "
            "the attention probabilities themselves; use 0, or --no-aia"
        )
    if model.attention_backend not in ("auto", "flash") and not has_gpu:
        raise ValueError(
            f"--attention-backend {model.attention_backend} needs a GPU and there is none; use auto"
        )
    if model.transformer_impl == "transformer_engine" and not has_gpu:
        raise ValueError(
            "--transformer-impl transformer_engine needs a GPU and there is none; use local"
        )


def check_tensor_parallel(config: Config) -> None:
    """Check that everything that is split divides."""
    check_split(config, ("num_attention_heads", "num_query_groups", "ffn_hidden_size"))
    tensor, _, _ = config.parallel.layout
    if config.parallel.sequence_parallel and config.data.seq_length % tensor:
        raise ValueError(
            f"--sequence-parallel splits a sequence over {tensor} processes, and --seq-length "
            f"{config.data.seq_length} is not a multiple of {tensor}; use "
            f"{_next_multiple(config.data.seq_length, tensor)}"
        )


def check_split(config: Config, sizes: tuple[str, ...]) -> None:
    """Check that tensor parallelism divides sizes of the model.

    Raises:
        ValueError: naming the flag of the first that it does not divide.
    """
    model, (tensor, _, _) = config.model, config.parallel.layout
    fitting = alternatives(math.gcd(*(getattr(model, name) for name in sizes)))
    for name in sizes:
        if getattr(model, name) % tensor:
            raise ValueError(
                f"--tensor-model-parallel-size {tensor} does not divide "
                f"{flag(name)} {getattr(model, name)}; use {fitting}"
            )


def check_context_parallel(config: Config) -> None:
    """Check that a sequence divides into chunks, and that attention over shared ones can run."""
    tensor, _, context = config.parallel.layout
    if context == 1:
        return
    name = f"--context-parallel-size {context}"
    chunks, reason = 2 * context, f"cuts a sequence into {2 * context} chunks"
    if config.parallel.sequence_parallel and tensor > 1:
        chunks *= tensor
        reason += f" and --sequence-parallel each over {tensor} processes"
    if config.data.seq_length % chunks:
        raise ValueError(
            f"{name} {reason}, and --seq-length {config.data.seq_length} is not a multiple of "
            f"{chunks}; use {_next_multiple(config.data.seq_length, chunks)}"
        )
    if config.model.attention_dropout > 0:
        raise ValueError(
            f"--attention-dropout {config.model.attention_dropout} cannot be used with {name}, "
            "whose attention has none; use 0"
        )


def check_pipeline_parallel(config: Config) -> None:
    """Check that layers divide into stages and chunks."""
    layers, (_, pipeline, _) = config.model.num_layers, config.parallel.layout
    if layers % pipeline:
        raise ValueError(
            f"--pipeline-model-parallel-size {pipeline} does not divide --num-layers {layers}; "
            f"use {alternatives(layers)}"
        )
    chunk = config.parallel.num_layers_per_virtual_pipeline_stage
    if chunk is None:
        return
    name = f"--num-layers-per-virtual-pipeline-stage {chunk}"
    if pipeline == 1:
        raise ValueError(
            f"{name} interleaves pipeline stages, and there is one stage; "
            "leave it out, or use --pipeline-model-parallel-size 2 or more"
        )
    if config.data.variable_seq_lengths:
        raise ValueError(
            f"--variable-seq-lengths cannot be used with {name}: megatron-core mixes up the shapes "
            "of a stage's two neighbours there; leave out one of them"
        )
    stage = layers // pipeline
    if stage % chunk or stage == chunk:
        remedy = f"use {alternatives(stage, below=stage)}" if stage > 1 else "leave it out"
        raise ValueError(
            f"{name} does not split the {stage} layers of a stage into two or more chunks; {remedy}"
        )


def check_world(config: Config, world_size: int) -> None:
    """Check that the layout divides the processes."""
    tensor, pipeline, context = config.parallel.layout
    model_size = tensor * pipeline * context
    if world_size % model_size:
        shared = f"x --context-parallel-size {context} " if context > 1 else ""
        raise ValueError(
            f"--tensor-model-parallel-size {tensor} x --pipeline-model-parallel-size {pipeline} "
            f"{shared}= {model_size} does not divide the number of processes, {world_size}; start "
            f"a multiple of {model_size} processes (torchrun --nproc-per-node), or lower the sizes"
        )


def check_recompute(config: Config) -> None:
    """Check that recomputed layers divide."""
    parallel = config.parallel
    if parallel.recompute_granularity != "full":
        return
    stage = config.model.num_layers // parallel.layout[1]
    chunk = parallel.num_layers_per_virtual_pipeline_stage or stage
    layers = parallel.recompute_num_layers
    if parallel.recompute_method == "uniform" and chunk % layers:
        raise ValueError(
            f"--recompute-num-layers {layers} does not divide the {chunk} layers of a pipeline "
            f"stage or chunk; use {alternatives(chunk)}"
        )
    if layers > chunk:
        raise ValueError(
            f"--recompute-num-layers {layers} is more than the {chunk} layers of a pipeline "
            f"stage or chunk; use {chunk} or less"
        )


def alternatives(number: int, below: int | None = None) -> str:
    """Return the divisors of ``number`` as text, ``1, 2 or 4``; optionally only those below."""
    divisors = [d for d in range(1, number + 1) if number % d == 0 and (below is None or d < below)]
    *first, last = map(str, divisors)
    return f"{', '.join(first)} or {last}" if first else last


def _next_multiple(number: int, factor: int) -> int:
    return -(-number // factor) * factor
