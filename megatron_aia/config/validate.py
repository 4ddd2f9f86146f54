"""Checks of a configuration, so that a mistake is one line before any process starts to work."""

import os
from dataclasses import replace
from pathlib import Path

from megatron_aia.config.data_sources import check_data_sources, named_folders
from megatron_aia.config.files import settings_by_name, value_of
from megatron_aia.config.locations import check_location, is_url
from megatron_aia.config.settings import check_range, flag
from megatron_aia.config.tree import AIAConfig, CheckpointConfig, Config, TrainingConfig
from megatron_aia.config.validate_fp8 import check_fp8, notes_on_fp8
from megatron_aia.config.validate_logging import check_logging, notes_on_logging
from megatron_aia.config.validate_model import (
    check_context_parallel,
    check_model_settings,
    check_pipeline_parallel,
    check_recompute,
    check_tensor_parallel,
    check_world,
)


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
    _check_ranges(config)
    check_model_settings(config, has_gpu)
    check_tensor_parallel(config)
    check_context_parallel(config)
    check_pipeline_parallel(config)
    check_world(config, world_size)
    check_recompute(config)
    check_fp8(config, has_gpu)
    _check_data(config)
    _check_training(config)
    _check_checkpoint(config)
    check_logging(config, world_size, has_gpu)
    return _settings_without_effect(config)


def _check_ranges(config: Config) -> None:
    for name, setting in settings_by_name(config).items():
        check_range(setting, value_of(config, name))


def _check_data(config: Config) -> None:
    data = config.data
    if data.seq_length > config.model.max_position_embeddings:
        raise ValueError(
            f"--seq-length {data.seq_length} is longer than --max-position-embeddings "
            f"{config.model.max_position_embeddings}; lower the one or raise the other"
        )
    check_data_sources(data)
    for folder in named_folders(data):
        _check_data_folder("--data-path", folder, data.data_cache_path)
    for folder in named_folders(replace(data, data_path=data.valid_data_path)):
        _check_data_folder("--valid-data-path", folder, data.data_cache_path)
    for name in ("tokenizer_model", "image_tokenizer"):
        path = getattr(data, name)
        if path is not None and not Path(path).exists():
            raise ValueError(f"{flag(name)} {path} does not exist")


def _check_data_folder(name: str, folder: str, cache_path: str | None) -> None:
    if is_url(folder):
        try:
            check_location(folder)
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
        if cache_path is None:
            raise ValueError(
                f"{name} {folder} is a URL and cannot keep its index; name a folder for it by "
                "--data-cache-path"
            )
    elif not Path(folder).is_dir():
        raise ValueError(f"{name} {folder} is not a folder; write one with tools/build_shards.py")


def check_can_be_made(name: str, folder: str | None) -> None:
    """Check that a folder is there to write to, or that one above it is.

    Args:
        name: flag that names it.
        folder: None is fine.

    Raises:
        ValueError: it is a file or below one, or nothing may be written there.
    """
    if folder is None:
        return
    there = Path(folder).absolute()
    while not there.exists() and not there.is_symlink() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{name} {folder} cannot be made: {there} is no folder; choose another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name} {folder} cannot be written: {there} does not allow it")


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
    check_can_be_made("--save", checkpoint.save)
    check_can_be_made("--tensorboard-dir", config.logging.tensorboard_dir)
    if checkpoint.save_interval is not None and checkpoint.save is None:
        raise ValueError(
            f"--save-interval {checkpoint.save_interval} has no folder to save to; add --save"
        )
    if checkpoint.finetune and checkpoint.load is None:
        raise ValueError("--finetune has no weights to start from; add --load")
    if checkpoint.reset_data and checkpoint.load is None:
        raise ValueError("--reset-data has no run to go on with; add --load")
    if checkpoint.reset_data and checkpoint.finetune:
        raise ValueError(
            "--reset-data goes on at the step of --load and --finetune begins at step 0, with the "
            "new data too; use one of them"
        )
    for name in ("load", "pretrained_checkpoint"):
        folder = getattr(checkpoint, name)
        may_be_missing = name == "load" and folder == checkpoint.save
        if folder is not None and not may_be_missing and not Path(folder).is_dir():
            raise ValueError(f"{flag(name)} {folder} is not a folder; give one with a checkpoint")
    for name in ("exit_signal_handler", "exit_duration_in_mins"):
        if getattr(checkpoint, name) and checkpoint.save is None:
            raise ValueError(f"{flag(name)} has no folder to save to; add --save")
    if checkpoint.exit_signal_handler and not checkpoint.exit_signal:
        raise ValueError("--exit-signal-handler listens to nothing: --exit-signal names no signal")


def _settings_without_effect(config: Config) -> list[str]:
    notes = notes_on_fp8(config) + notes_on_logging(config)
    figures = config.logging.aia_figure_interval
    if figures % config.logging.log_interval:
        notes.append(
            f"--aia-figure-interval {figures} is no multiple of --log-interval "
            f"{config.logging.log_interval}: figures are drawn only where both meet"
        )
    if config.data.num_workers and config.data.image_tokenizer:
        notes.append(
            f"--num-workers {config.data.num_workers} reads nothing ahead with --image-tokenizer: "
            "codes are made in the main processes"
        )
    if config.parallel.sequence_parallel and config.parallel.layout[0] == 1:
        notes.append("--sequence-parallel has no effect with --tensor-model-parallel-size 1")
    for name in ("eval_interval", "eval_iters"):
        if not config.data.valid_data_path and value_of(config, name) != getattr(
            TrainingConfig, name
        ):
            notes.append(f"{flag(name)} has no effect without --valid-data-path")
    if not config.checkpoint.exit_signal_handler and (
        config.checkpoint.exit_signal != CheckpointConfig.exit_signal
    ):
        notes.append("--exit-signal has no effect without --exit-signal-handler")
    for name in ("save_total_limit", "async_save"):
        if getattr(config.checkpoint, name) and config.checkpoint.save is None:
            notes.append(f"{flag(name)} has no effect without --save")
    if (
        config.aia.aia_sampled_queries != AIAConfig.aia_sampled_queries
        and config.aia.aia_attention != "sampled"
    ):
        notes.append("--aia-sampled-queries has no effect without --aia-attention sampled")
    method = config.aia.aia_attention
    if config.model.attention_backend != "auto" and method in ("eager", "fused"):
        notes.append(f"--attention-backend has no effect with --aia-attention {method}")
    if config.logging.aia_figure_interval and config.logging.tensorboard_dir is None:
        notes.append("--aia-figure-interval has no effect without --tensorboard-dir")
    return notes
