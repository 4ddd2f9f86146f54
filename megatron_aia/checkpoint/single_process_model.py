"""The whole model in one process, as sharded checkpoints store it, without holding it twice."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_aia.checkpoint.sharded import damage_is_named, read_sharded
from megatron_aia.config import AIAConfig, Config, DataConfig, ModelConfig, ParallelConfig
from megatron_aia.models import load_model_spec
from megatron_aia.models.backbone import PackedGPTModel
from megatron_aia.runtime.parallel import (
    Parallel,
    create_parallel,
    destroy_parallel,
    initialize_process_group,
)
from megatron_aia.runtime.safe_pickle import tables_and_tensors_only


class SingleProcessModel:
    """Parameters of a model by name, without storage until they are set or read.

    Use it as a context: a process can hold one layout of process groups at a time.

    Args:
        model: architecture.
    """

    def __init__(self, model: ModelConfig) -> None:
        # Plain layers: checkpoints have the same keys for Transformer Engine's.
        plain = replace(model, transformer_impl="local")
        parallel = ParallelConfig(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
        self._config = Config(
            model=plain,
            aia=AIAConfig(aia=False),
            parallel=parallel,
            data=DataConfig(packing=False),
        )
        self._filled: dict[str, Any] = {}

    def __enter__(self) -> "SingleProcessModel":
        initialize_process_group(self._config.parallel.distributed_timeout_minutes)
        self._parallel: Parallel = create_parallel(
            self._config.parallel, self._config.model.num_layers, self._config.run.seed
        )
        with torch.device("meta"):
            decoder = self._build()
        self._sharded: dict[str, Any] = {}
        for name, entry in decoder.sharded_state_dict().items():
            # What is no tensor is empty, but loading asks for it.
            is_tensor = isinstance(entry, (ShardedTensor, ShardedTensorFactory))
            (self._sharded if is_tensor else self._filled)[name] = entry
        self.shapes = {name: tuple(entry.data.shape) for name, entry in self._sharded.items()}
        """Shape of every parameter."""
        return self

    def __exit__(self, *error: object) -> None:
        destroy_parallel()

    def set(self, name: str, parameter: torch.Tensor) -> None:
        """Keep the value of a parameter until ``save``."""
        entry = copy.copy(self._sharded[name])
        entry.data = parameter
        if isinstance(entry, ShardedTensor):
            entry.dtype = parameter.dtype
            self._filled[name] = entry
            return
        # A view of a part would be copied by the writer while the whole is still held.
        parts = entry.build()
        for part in parts:
            part.data = part.data.clone()
        self._filled[name] = parts

    def save(self, folder: Path) -> None:
        """Write all parameters that were set, and let go of them."""
        dist_checkpointing.save({"model": self._filled}, str(folder))
        self._filled.clear()

    def read(self, path: Path) -> dict[str, torch.Tensor]:
        """Read all parameters of a checkpoint, in the type it stores.

        Raises:
            ValueError: the checkpoint is damaged or of another model.
        """
        stored = self._stored_tensors(path)
        request = {}
        for name, sharded in self._sharded.items():
            entry = copy.copy(sharded)
            dtype = stored[entry.key].dtype
            entry.data = torch.empty(entry.data.shape, dtype=dtype)
            if isinstance(entry, ShardedTensor):
                entry.dtype = dtype
            request[name] = entry
        loaded = read_sharded(request, path)
        return {name: loaded[name] for name in request}

    def stored_dtype(self, path: Path) -> torch.dtype:
        """Return the type of a checkpoint's matrices.

        Raises:
            ValueError: the checkpoint is damaged or of another model.
        """
        key = next(iter(self._sharded.values())).key
        return self._stored_tensors(path)[key].dtype

    def load_model(self, path: Path) -> PackedGPTModel:
        """Return the model with a checkpoint's weights in fp32, for inference."""
        decoder = self._build()
        request = decoder.sharded_state_dict()
        loaded = read_sharded(request, path)
        decoder.load_state_dict({name: loaded[name] for name in request})
        return decoder.eval()

    def _build(self) -> PackedGPTModel:
        return load_model_spec(self._config.model.model).build(self._config, self._parallel, 0)

    def _stored_tensors(self, path: Path) -> dict[str, Any]:
        with damage_is_named(path), tables_and_tensors_only():
            stored = dist_checkpointing.load_tensors_metadata(str(path))
        missing = sorted({entry.key for entry in self._sharded.values()} - stored.keys())
        if missing:
            raise ValueError(f"the checkpoint {path} cannot be loaded (it lacks {missing[0]})")
        return stored
