"""Sharded states of a model: read from a checkpoint, in any layout, whatever its files hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
)
from torch.distributed.checkpoint.api import CheckpointException

from megatron_aia.checkpoint.choose import choose_checkpoint
from megatron_aia.checkpoint.compatibility import check_architecture, check_megatron_core
from megatron_aia.checkpoint.run_state import RunState, read_state
from megatron_aia.runtime.safe_pickle import tables_and_tensors_only

DAMAGE = (
    # CheckpointException, of torch, is a BaseException.
    *(
        CheckpointException,
        CheckpointingException,
        UnpicklingError,
        OSError,
        RuntimeError,
        LookupError,
        EOFError,
    ),
    *(AttributeError, TypeError, ValueError, AssertionError, MemoryError),
)
"""What torch and megatron-core raise where a file is damaged or of another format."""
_NORM_STATE = "norm._extra_state"
"""End of the names of what Transformer Engine's norms, operators, keep beside their weights."""


def load_weights(
    models: Sequence[Any],
    folder: Path,
    model: dict[str, Any],
    control: dist.ProcessGroup,
    verify: bool = True,
) -> RunState:
    """Load the weights of unwrapped model chunks; every rank calls this.

    Args:
        models: chunks of this process.
        folder: of checkpoints, or one checkpoint.
        model: fields of the model's configuration; the checkpoint's must be the same.
        control: all ranks.
        verify: compare the files with their checksums before.

    Raises:
        ValueError: no checkpoint, another model, damaged files.
    """
    path = choose_checkpoint(folder, control, verify)
    state = read_state(path)
    check_architecture(path, state.model, model)
    load_states(models, read_sharded(chunk_states(models), path))
    return state


def read_sharded(
    content: dict[str, Any], path: Path, replicas: dist.ProcessGroup | None = None
) -> Any:
    """Read the tensors that ``content`` describes.

    Args:
        content: sharded state.
        path: one checkpoint.
        replicas: ranks that want the same tensors: each reads a part of them and sends it to the
            others. None reads all on every rank.

    Raises:
        ValueError: the files are damaged, or of another model or a newer megatron-core.
    """
    check_megatron_core(path, read_state(path).megatron_core)
    with damage_is_named(path), tables_and_tensors_only():
        strategy = get_default_load_sharded_strategy(str(path))
        if replicas is not None and replicas.size() > 1:
            strategy = FullyParallelLoadStrategyWrapper(strategy, replicas)
        return dist_checkpointing.load(content, str(path), strategy)


@contextmanager
def damage_is_named(path: Path) -> Iterator[None]:
    """Name the checkpoint in what reading its files raises, which depends on the damage.

    Raises:
        ValueError: in the place of it.
    """
    try:
        yield
    except DAMAGE as error:
        raise ValueError(
            f"the checkpoint {path} cannot be loaded ({first_line(error)}); use another one"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error; torch keeps the causes of its own beside the message."""
    causes = [cause for cause, _ in getattr(error, "failures", {}).values()]
    if causes:
        return first_line(causes[0])
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def chunk_states(models: Sequence[Any]) -> dict[str, Any]:
    """Return the sharded states of model chunks.

    Transformer Engine's norm, an operator, has an extra state that says nothing, and the other
    norms have none: it is left out, or no checkpoint would load on both sides.
    """
    return {
        _chunk_key(i, len(models)): {
            name: part
            for name, part in model.sharded_state_dict().items()
            if not name.endswith(_NORM_STATE)
        }
        for i, model in enumerate(models)
    }


def load_states(models: Sequence[Any], loaded: dict[str, Any]) -> None:
    """Give model chunks the states that were read for them, which must be complete."""
    for i, model in enumerate(models):
        missing, unexpected = model.load_state_dict(
            loaded[_chunk_key(i, len(models))], strict=False
        )
        missing = [name for name in missing if not name.endswith(_NORM_STATE)]
        assert not missing and not unexpected, (missing, unexpected)


def _chunk_key(index: int, count: int) -> str:
    return "model" if count == 1 else f"model{index}"
