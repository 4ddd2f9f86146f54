"""Checks of a configuration, so that a mistake is one line before any process starts to work."""

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from megatron_aia.config.files import flag, value_of
from megatron_aia.config.tree import Config

_AT_LEAST_ONE = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"),
    *("kv_channels", "max_position_embeddings", "rotary_base", "text_vocab_size"),
    *("codebook_size", "make_vocab_size_divisible_by"),
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
    *("num_layers_per_virtual_pipeline_stage", "recompute_num_layers"),
    *("distributed_timeout_minutes", "seq_length", "micro_batch_size", "global_batch_size"),
    *("train_iters", "lr_decay_iters", "save_interval", "log_interval"),
)
_ABOVE_ZERO = ("norm_epsilon", "adam_eps")
_NOT_NEGATIVE = (
    *("seed", "init_method_std", "aia_lambda_generation", "aia_lambda_understanding"),
    *("lr", "min_lr", "lr_warmup_iters", "weight_decay", "clip_grad"),
    *("keep_checkpoints", "aia_figure_interval"),
)
_SHARES = ("attention_dropout", "hidden_dropout", "prompt_drop", "adam_beta1", "adam_beta2")

_DEMO_PRESET = "emu3_demo"
_PRESETS_OF_PUBLISHED_WEIGHTS = ("emu3_8b",)


def validate(config: Config, world_size: int, has_gpu: bool = False) -> list[str]:
    """Check that a configuration can run on ``world_size`` processes.

    Args:
        config: a configuration with its layout fitted.
        world_size: processes of the whole run.
        has_gpu: whether the run computes on GPUs.

    Returns:
        One line for every setting that will have no effect.

    Raises:
        ValueError: naming the flag, its value and a remedy.
    """
    _check_inputs(config)
    _check_ranges(config)
    _check_model(config, has_gpu)
    _check_tensor_parallel(config)
    _check_pipeline_parallel(config)
    _check_world(config, world_size)
    _check_recompute(config)
    _check_data(config)
    _check_training(config)
    _check_checkpoint(config)
    return _settings_without_effect(config)


def _check_inputs(config: Config) -> None:
    missing = []
    if config.run.preset != _DEMO_PRESET and not config.data.data_path:
        missing.append("--data-path (shards written by tools/build_shards.py)")
    start = config.checkpoint.load or config.checkpoint.pretrained_checkpoint
    if config.run.preset in _PRESETS_OF_PUBLISHED_WEIGHTS and start is None:
        missing.append("--load (a checkpoint to start from)")
    if missing:
        raise ValueError(f"preset {config.run.preset} needs " + " and ".join(missing))


def _check_ranges(config: Config) -> None:
    rules: list[tuple[Iterable[str], Callable[[float], bool], str]] = [
        (_AT_LEAST_ONE, lambda value: value >= 1, "use 1 or more"),
        (_ABOVE_ZERO, lambda value: value > 0, "use a value above 0"),
        (_NOT_NEGATIVE, lambda value: value >= 0, "use 0 or more"),
        (_SHARES, lambda value: 0 <= value < 1, "use 0 or more and less than 1"),
    ]
    for names, allowed, remedy in rules:
        for name in names:
            value = value_of(config, name)
            # nan compares false with everything, inf passes `>= 0` and trains to nan
            if value is not None and not (allowed(value) and math.isfinite(value)):
                raise ValueError(f"{flag(name)} {value} is out of range; {remedy}")


def _check_model(config: Config, has_gpu: bool) -> None:
    model = config.model
    heads, groups = model.num_attention_heads, model.num_query_groups
    if heads % groups:
        raise ValueError(
            f"--num-query-groups {groups} does not divide --num-attention-heads {heads}; "
            f"use {_alternatives(heads)}"
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
    if model.transformer_impl == "transformer_engine" and not has_gpu:
        raise ValueError(
            "--transformer-impl transformer_engine needs a GPU and there is none; use local"
        )


def _check_tensor_parallel(config: Config) -> None:
    model, (tensor, _, _) = config.model, config.parallel.layout
    split = ("num_attention_heads", "num_query_groups", "ffn_hidden_size")
    fitting = _alternatives(math.gcd(*(getattr(model, name) for name in split)))
    for name in split:
        if getattr(model, name) % tensor:
            raise ValueError(
                f"--tensor-model-parallel-size {tensor} does not divide "
                f"{flag(name)} {getattr(model, name)}; use {fitting}"
            )
    if config.parallel.sequence_parallel and config.data.seq_length % tensor:
        raise ValueError(
            f"--sequence-parallel splits a row over {tensor} processes, and --seq-length "
            f"{config.data.seq_length} is not a multiple of {tensor}; use "
            f"{_next_multiple(config.data.seq_length, tensor)}"
        )


def _check_pipeline_parallel(config: Config) -> None:
    layers, (_, pipeline, _) = config.model.num_layers, config.parallel.layout
    if layers % pipeline:
        raise ValueError(
            f"--pipeline-model-parallel-size {pipeline} does not divide --num-layers {layers}; "
            f"use {_alternatives(layers)}"
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
    stage = layers // pipeline
    if stage % chunk or stage == chunk:
        remedy = f"use {_alternatives(stage, below=stage)}" if stage > 1 else "leave it out"
        raise ValueError(
            f"{name} does not split the {stage} layers of a stage into two or more chunks; {remedy}"
        )


def _check_world(config: Config, world_size: int) -> None:
    tensor, pipeline, context = config.parallel.layout
    if context > 1:
        raise ValueError(
            f"--context-parallel-size {context} is not supported by this version; use 1, and "
            "spread long rows with --tensor-model-parallel-size and --sequence-parallel"
        )
    model_size = tensor * pipeline
    if world_size % model_size:
        raise ValueError(
            f"--tensor-model-parallel-size {tensor} x --pipeline-model-parallel-size {pipeline} "
            f"= {model_size} does not divide the number of processes, {world_size}; start a "
            f"multiple of {model_size} processes (torchrun --nproc-per-node), or lower the sizes"
        )


def _check_recompute(config: Config) -> None:
    parallel = config.parallel
    if parallel.recompute_granularity != "full":
        return
    stage = config.model.num_layers // parallel.layout[1]
    chunk = parallel.num_layers_per_virtual_pipeline_stage or stage
    layers = parallel.recompute_num_layers
    if parallel.recompute_method == "uniform" and chunk % layers:
        raise ValueError(
            f"--recompute-num-layers {layers} does not divide the {chunk} layers of a pipeline "
            f"stage or chunk; use {_alternatives(chunk)}"
        )
    if layers > chunk:
        raise ValueError(
            f"--recompute-num-layers {layers} is more than the {chunk} layers of a pipeline "
            f"stage or chunk; use {chunk} or less"
        )


def _check_data(config: Config) -> None:
    data = config.data
    if data.seq_length > config.model.max_position_embeddings:
        raise ValueError(
            f"--seq-length {data.seq_length} is longer than --max-position-embeddings "
            f"{config.model.max_position_embeddings}; lower the one or raise the other"
        )
    if not re.fullmatch(r"\d+:\d+(:\d+){0,2}", data.task_ratio) or not re.search(
        "[1-9]", data.task_ratio
    ):
        raise ValueError(
            f"--task-ratio {data.task_ratio} is not a ratio of whole numbers; write "
            "generation:understanding[:text[:mixed]], as in 1:1 or 2:2:1"
        )
    for folder in data.data_path:
        if not Path(folder).is_dir():
            raise ValueError(
                f"--data-path {folder} is not a folder; write one with tools/build_shards.py"
            )
    if data.tokenizer_model is not None and not Path(data.tokenizer_model).exists():
        raise ValueError(f"--tokenizer-model {data.tokenizer_model} does not exist")


def _check_training(config: Config) -> None:
    training, parallel = config.training, config.parallel
    if training.min_lr > training.lr:
        raise ValueError(
            f"--min-lr {training.min_lr} is above --lr {training.lr}; use {training.lr} or less"
        )
    decay = training.lr_decay_iters or training.train_iters
    if training.lr_warmup_iters >= decay:
        source = "--train-iters" if training.lr_decay_iters is None else "--lr-decay-iters"
        raise ValueError(
            f"--lr-warmup-iters {training.lr_warmup_iters} leaves no step to decay in: {source} "
            f"is {decay}; use {decay - 1} or less"
        )
    if parallel.overlap_param_gather:
        for name in ("use_distributed_optimizer", "overlap_grad_reduce"):
            if not getattr(parallel, name):
                raise ValueError(f"--overlap-param-gather works only with {flag(name)}; add it")


def _check_checkpoint(config: Config) -> None:
    checkpoint = config.checkpoint
    if checkpoint.save_interval is not None and checkpoint.save is None:
        raise ValueError(
            f"--save-interval {checkpoint.save_interval} has no folder to save to; add --save"
        )
    if checkpoint.finetune and checkpoint.load is None:
        raise ValueError("--finetune has no weights to start from; add --load")
    for name in ("load", "pretrained_checkpoint"):
        folder = getattr(checkpoint, name)
        may_be_missing = name == "load" and folder == checkpoint.save
        if folder is not None and not may_be_missing and not Path(folder).is_dir():
            raise ValueError(f"{flag(name)} {folder} is not a folder; give one with a checkpoint")
    if checkpoint.exit_signal_handler and checkpoint.save is None:
        raise ValueError("--exit-signal-handler has no folder to save to; add --save")


def _settings_without_effect(config: Config) -> list[str]:
    notes = []
    figures = config.logging.aia_figure_interval
    if figures % config.logging.log_interval:
        notes.append(
            f"--aia-figure-interval {figures} is no multiple of --log-interval "
            f"{config.logging.log_interval}: figures are drawn only where both meet"
        )
    if config.parallel.sequence_parallel and config.parallel.layout[0] == 1:
        notes.append("--sequence-parallel has no effect with --tensor-model-parallel-size 1")
    if config.checkpoint.keep_checkpoints and config.checkpoint.save is None:
        notes.append("--keep-checkpoints has no effect without --save")
    if config.logging.aia_figure_interval and config.logging.tensorboard_dir is None:
        notes.append("--aia-figure-interval has no effect without --tensorboard-dir")
    return notes


def _alternatives(number: int, below: int | None = None) -> str:
    """Return the divisors of ``number`` as text, ``1, 2 or 4``; optionally only those below."""
    divisors = [d for d in range(1, number + 1) if number % d == 0 and (below is None or d < below)]
    *first, last = map(str, divisors)
    return f"{', '.join(first)} or {last}" if first else last


def _next_multiple(number: int, factor: int) -> int:
    return -(-number // factor) * factor
