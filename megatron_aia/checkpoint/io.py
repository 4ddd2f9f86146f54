"""Saving and loading a whole run by megatron-core's dist_checkpointing, for any layout."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
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
from megatron_aia.checkpoint.folder import checkpoint_path, publish, remove_leftovers
from megatron_aia.checkpoint.manifest import FileSums
from megatron_aia.checkpoint.pending import PendingSave, Place, on_rank_0
from megatron_aia.checkpoint.random_states import random_states, set_random_states
from megatron_aia.checkpoint.run_state import RunState, read_state, write_state
from megatron_aia.checkpoint.sharded import chunk_states, load_states, read_sharded
from megatron_aia.checkpoint.writing import TensorWriting
from megatron_aia.runtime.parallel import Parallel, gather_parameters
from megatron_aia.runtime.watchdog import watchdog

_OPTIMIZER_STATE = ("params", "step")
"""Fields of the optimizer's groups that are no settings."""


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

    def begin(
        self, folder: Path, state: RunState, config_text: str, in_background: bool = False
    ) -> PendingSave:
        """Begin a checkpoint; every rank calls this, on a file system they share.

        When it returns, the run may go on to change what is saved. The checkpoint is complete,
        and found, once every rank has called ``PendingSave.finish``.

        Args:
            folder: of checkpoints.
            state: of the run.
            config_text: its settings.
            in_background: a process beside the run writes the tensors, and not this one.

        Raises:
            CheckpointWriteError: as ``PendingSave.finish``.
        """
        place = Place(folder, checkpoint_path(folder, state.iteration))
        control = self._parallel.control
        with place.errors_are_named():
            on_rank_0("making its folder", lambda: _fresh_folder(place.temporary), control)
            gather_parameters(self._wrapped_models)
            content = {
                **self._model_state(),
                "optimizer": self._optimizer_state(is_loading=False),
                "opt_param_scheduler": self._scheduler.state_dict(),
                "rng_state": random_states(self._parallel),
            }
            watchdog.at("saving a checkpoint: writing its tensors")
            tensors = TensorWriting(
                content, place.temporary, self._save_strategy, control, in_background
            )

        def complete(sums: FileSums, keep: int) -> None:
            write_state(place.temporary, state, config_text, sums)
            publish(place.temporary, place.final, keep)

        return PendingSave(place, tensors, complete, control)

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
                content["rng_state"] = random_states(self._parallel)
        loaded = read_sharded(content, path, self._parallel.groups.dp_cp)
        load_states(self._models, loaded)
        if weights_only:
            self._optimizer.reload_model_params()
        else:
            with torch.no_grad(), _own_settings(self._optimizer):
                self._optimizer.load_state_dict(loaded["optimizer"])
            self._scheduler.load_state_dict(loaded["opt_param_scheduler"])
            if "rng_state" in content:
                set_random_states(loaded["rng_state"])
        return state

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


def _fresh_folder(path: Path) -> None:
    """Make an empty folder to write to, in the place of what killed saves left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()
