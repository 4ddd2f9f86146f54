"""A preset's value gives way to what the user asked for; only two given values can contradict."""

import math
from collections.abc import Set
from typing import Any

from megatron_aia.config.files import value_of, with_values
from megatron_aia.config.settings import flag
from megatron_aia.config.tree import Config


def give_way(
    config: Config, given: Set[str], world_size: int | None = None
) -> tuple[Config, list[str]]:
    """Fit the values that came from a preset to those that the user gave.

    Schedule, lengths and layout give way. The sizes of the network do not: half an architecture
    is a mistake.

    Args:
        config: of the run.
        given: fields that the file or the flags set.
        world_size: processes of the run; None leaves the layout as it is.

    Returns:
        The configuration, and one line for every value that changed.
    """
    changes = _schedule(config, given) | _lengths(config, given)
    if world_size is not None:
        changes |= _layout(config, given, world_size)
    notes = []
    for name, value in changes.items():
        was = f"{flag(name)} {value_of(config, name)}"
        notes.append(f"{was} of preset {config.run.preset} is {value} here, to fit this run")
    return with_values(config, changes), notes


def _schedule(config: Config, given: Set[str]) -> dict[str, Any]:
    training = config.training
    changes: dict[str, Any] = {}
    if training.min_lr > training.lr:
        if "min_lr" not in given:
            changes["min_lr"] = training.lr
        elif "lr" not in given:
            changes["lr"] = training.min_lr
    end = "train_iters" if training.lr_decay_iters is None else "lr_decay_iters"
    last = training.lr_decay_iters or training.train_iters
    if training.lr_warmup_iters >= last:
        if "lr_warmup_iters" not in given:
            changes["lr_warmup_iters"] = max(last - 1, 0)
        elif end not in given:
            changes[end] = training.lr_warmup_iters + 1
    return changes


def _lengths(config: Config, given: Set[str]) -> dict[str, Any]:
    """A longer sequence stretches the positions of a preset, fewer positions shorten it."""
    length, positions = config.data.seq_length, config.model.max_position_embeddings
    if length <= positions:
        return {}
    if "max_position_embeddings" not in given:
        return {"max_position_embeddings": length}
    return {} if "seq_length" in given else {"seq_length": positions}


def _layout(config: Config, given: Set[str], world_size: int) -> dict[str, Any]:
    """Take the largest part of a preset's tensor and pipeline sizes that fits the processes."""
    model, (tensor, pipeline, context) = config.model, config.parallel.layout
    sizes = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}
    changes: dict[str, Any] = {}
    free = world_size // max(context, 1)
    for name in sorted(sizes, key=lambda name: name not in given):  # given sizes first
        size = sizes[name]
        if name not in given and value_of(config, name) is not None and free:
            splits = (model.num_attention_heads, model.num_query_groups, model.ffn_hidden_size)
            fitting = math.gcd(
                size, free, *(splits if name.startswith("tensor") else (model.num_layers,))
            )
            if fitting != size:
                changes[name] = size = fitting
        free //= max(size, 1)
        if name.startswith("tensor"):
            tensor = size
    splits_sequence = config.parallel.sequence_parallel and "sequence_parallel" not in given
    if splits_sequence and config.data.seq_length % max(tensor, 1):
        changes["sequence_parallel"] = False
    return changes
