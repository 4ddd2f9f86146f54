"""Saving and loading a whole run by megatron-core's dist_checkpointing, for any layout."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import (
    get_default_save_sharded_strategy,
)
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.utils import unwrap_model

from megatron_aia.checkpoint.choose import choose_checkpoint
from megatron_aia.checkpoint.compatibility import (
    check_architecture,
    check_freeze,
    check_optimizer,
)
from megatron_aia.checkpoint.folder import (
    WRITING,
    RunState,
    checkpoint_path,
    complete_checkpoints,
    publish,
    read_state,
    remove_leftovers,
    write_state,
)
from megatron_aia.checkpoint.manifest import FileSums, sum_files_of_rank
from megatron_aia.checkpoint.sharded import (
    DAMAGE,
    chunk_states,
    first_line,
    load_states,
    read_sharded,
)
from megatron_aia.runtime.device import has_cuda
from megatron_aia.runtime.parallel import Parallel, broadcast_failure, gather_parameters
from megatron_aia.runtime.processes import end_with_children
from megatron_aia.runtime.watchdog import watchdog

_OPTIMIZER_STATE = ("params", "step")
"""Fields of the optimizer's groups that are no settings."""


class CheckpointWriteError(RuntimeError):
    """A checkpoint cannot be written; the older ones are as they were."""


class CheckpointIO:
    """Saves and loads the parts of one run.

    Args:
        models: model chunks of this process.
        optimizer: their optimizer.
        scheduler: its schedule.
        parallel: layout of this run.
    """

    def __init__(
        self,
        models: list[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        scheduler: OptimizerParamScheduler,
        parallel: Parallel,
    ) -> None:
        self._wrapped_models = models
        self._models = [unwrap_model(model) for model in models]
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._parallel = parallel
        # Replicas share the writing, and plan it once: what a run saves keeps its shape.
        self._save_strategy = FullyParallelSaveStrategyWrapper(
            get_default_save_sharded_strategy(), parallel.groups.dp_cp, do_cache_distribution=True
        )

    def save(self, folder: Path, state: RunState, config_text: str, keep: int = 0) -> Path:
        """Write a checkpoint; every rank calls this, on a file system they share.

        It is written beside its final place and renamed when complete: a run that is killed while
        it saves leaves the older checkpoints, and the pointer to them, as they were.

        Raises:
            CheckpointWriteError: it cannot be written; naming the place and the room that is left.
        """
        final = checkpoint_path(folder, state.iteration)
        temporary = final.with_name(f".{final.name}.{WRITING}")
        try:
            self._write(temporary, final, state, config_text, keep)
        except DAMAGE as error:
            raise CheckpointWriteError(
                f"the checkpoint {final} cannot be written: {first_line(error)}"
                f"{_room(folder)}; older ones are as they were"
            ) from error
        return final

    def _write(
        self, temporary: Path, final: Path, state: RunState, config_text: str, keep: int
    ) -> None:
        self._on_first_rank("making its folder", lambda: _fresh_folder(temporary))
        gather_parameters(self._wrapped_models)
        content = {
            **self._model_state(),
            "optimizer": self._optimizer_state(is_loading=False),
            "opt_param_scheduler": self._scheduler.state_dict(),
            "rng_state": self._rng_state(),
        }
        watchdog.at("saving a checkpoint: writing its tensors")
        with end_with_children("that writes a checkpoint"):
            dist_checkpointing.save(content, str(temporary), self._save_strategy)
        # On the host: the slowest writer may take longer than a collective of the GPU may.
        watchdog.at("saving a checkpoint: waiting for all ranks to write")
        dist.barrier(self._parallel.control)
        watchdog.at("saving a checkpoint: reading its tensors again for their checksums")
        sums = self._sum_files(temporary)

        def finish() -> None:
            write_state(temporary, state, config_text, sums)
            publish(temporary, final, keep)

        self._on_first_rank("publishing it", finish)

    def load(
        self,
        folder: Path,
        model: dict[str, Any],
        optimizer: str,
        freeze: tuple[str, ...],
        weights_only: bool,
        verify: bool = True,
        fallback: bool = False,
    ) -> RunState:
        """Load the newest checkpoint of ``folder``; every rank calls this.

        Args:
            folder: of checkpoints, or one checkpoint.
            model: fields of the model's configuration; the checkpoint's must be the same.
            optimizer: kind of this run's optimizer, see ``RunState``.
            freeze: this run's --freeze.
            weights_only: leave optimizer, schedule and random states fresh.
            verify: compare the files with their checksums before.
            fallback: see ``choose_checkpoint``.

        Raises:
            ValueError: no checkpoint, another model, another kind of optimizer or an optimizer of
                other parameters, damaged files.
        """
        path = choose_checkpoint(folder, self._parallel.control, verify, fallback)
        state = read_state(path)
        check_architecture(path, state.model, model)
        weights_only = weights_only or not state.optimizer
        content: dict[str, Any] = self._model_state()
        if not weights_only:
            check_optimizer(path, state.optimizer, optimizer)
            check_freeze(path, state.freeze, freeze)
            content["optimizer"] = self._optimizer_state(is_loading=True)
            if state.layout == self.layout():
                content["rng_state"] = self._rng_state()
        loaded = read_sharded(content, path, self._parallel.groups.dp_cp)
        load_states(self._models, loaded)
        if weights_only:
            self._optimizer.reload_model_params()
        else:
            with torch.no_grad(), _own_settings(self._optimizer):
                self._optimizer.load_state_dict(loaded["optimizer"])
            self._scheduler.load_state_dict(loaded["opt_param_scheduler"])
            if "rng_state" in content:
                _set_rng_state(loaded["rng_state"])
        return state

    def _sum_files(self, path: Path) -> FileSums:
        """Return the sums of the files of tensors, each made by the rank that wrote it."""
        sums: FileSums = {}
        error: Exception | None = None
        try:
            sums = sum_files_of_rank(path, dist.get_rank())
        except OSError as caught:
            error = ValueError(f"the checkpoint cannot be read again: {caught}")
        broadcast_failure(error, self._parallel.control)
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, sums, group=self._parallel.control)
        return {name: each for part in everywhere for name, each in part.items()}

    def layout(self) -> dict[str, int]:
        """Return the sizes that random states depend on."""
        parallel = self._parallel
        return {
            "tensor": parallel.tensor_size,
            "pipeline": parallel.pipeline_size,
            "virtual": parallel.virtual_stages,
            "data": parallel.data_size,
            "context": parallel.context_size,
        }

    def _model_state(self) -> dict[str, Any]:
        return chunk_states(self._models)

    def _optimizer_state(self, is_loading: bool) -> Any:
        """Return the optimizer's sharded state, in the one form that any layout can load."""
        metadata = {
            "distrib_optim_sharding_type": "fully_reshardable",
            "dp_cp_group": self._parallel.groups.dp_cp,
            "chained_optim_avoid_prefix": True,
        }
        return self._optimizer.sharded_state_dict(
            self._model_state(), is_loading=is_loading, metadata=metadata
        )

    def _rng_state(self) -> ShardedObject:
        parallel = self._parallel
        replicas = parallel.groups.dp_cp
        return ShardedObject(
            "rng_state",
            _get_rng_state(),
            (parallel.pipeline_size, parallel.tensor_size, replicas.size()),
            (parallel.pipeline_rank, parallel.tensor_rank, replicas.rank()),
        )

    def _on_first_rank(self, name: str, action: Callable[[], None]) -> None:
        """Run ``action`` on rank 0; if it fails there, every rank raises."""
        error: Exception | None = None
        is_first = dist.get_rank() == 0
        watchdog.at(f"saving a checkpoint: {'' if is_first else 'waiting for rank 0, '}{name}")
        if is_first:
            try:
                action()
            except OSError as caught:
                error = ValueError(f"{name}: {caught}")
        broadcast_failure(error, self._parallel.control)


@contextmanager
def _own_settings(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Keep learning rates, betas and decay as this run's flags say, whatever a checkpoint has."""
    settings = [
        {name: value for name, value in group.items() if name not in _OPTIMIZER_STATE}
        for group in optimizer.param_groups
    ]
    yield
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def _room(folder: Path) -> str:
    """Return the space that is free for a checkpoint, and what the one before it takes."""
    try:
        free = f" ({shutil.disk_usage(folder).free / 1e9:.2f} GB are free"
        older = complete_checkpoints(folder)
        size = sum(file.stat().st_size for file in older[-1].rglob("*")) if older else 0
    except OSError:
        return ""
    return f"{free}, {older[-1].name} takes {size / 1e9:.2f} GB)" if older else f"{free})"


def _fresh_folder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()


def _get_rng_state() -> dict[str, Any]:
    return {
        "host": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state() if has_cuda() else None,
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["host"])
    if state["device"] is not None and has_cuda():
        torch.cuda.set_rng_state(state["device"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])
