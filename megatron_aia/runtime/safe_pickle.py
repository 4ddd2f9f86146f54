"""Checkpoints read without running their code: torch's pickles hold tables and tensors, no more.

A pickle may name any function and call it. megatron-core and torch read two kinds of them from a
checkpoint, without a limit: ``.metadata``, and entries of the tensor files that are no tensors.
"""

import io
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem

_ALLOWED = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "StorageMeta", "MetadataIndex", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("BytesStorageMetadata", "ChunkStorageMetadata", "TensorStorageMetadata"),
    },
    "torch.distributed.checkpoint.planner": {
        *("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData"),
    },
    "collections": {"OrderedDict"},
}
"""Classes of torch that only hold data, by module: what ``.metadata`` is made of."""
_VALUES_OF_TORCH = (torch.dtype, torch.layout, torch.memory_format)
_PATIENT_BYTES = 1 << 26
"""Of a pickle that the slow reader takes, some seconds at most."""
_UNSUPPORTED_GLOBAL = re.compile(r"GLOBAL (\S+)")


class ForbiddenPickleError(pickle.UnpicklingError):
    """A pickle names something that no checkpoint needs; nothing of it was run."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it holds {name}, which might run code; its origin is not to be trusted")


class _Limited:
    """Finds nothing but what is allowed."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return getattr(import_module(module), name)
        if module == "torch" and isinstance(getattr(torch, name, None), _VALUES_OF_TORCH):
            return getattr(torch, name)
        raise ForbiddenPickleError(f"{module}.{name}")


class _Unpickler(_Limited, pickle.Unpickler):
    """Fast, but a few damaged bytes can make it ask for any amount of memory."""


class _PatientUnpickler(_Limited, pickle._Unpickler):
    """Written in Python, where a number is no size of a table."""


def _loads(data: bytes) -> Any:
    unpickler = _PatientUnpickler if len(data) <= _PATIENT_BYTES else _Unpickler
    return unpickler(io.BytesIO(data)).load()


def _load(file: Any) -> Any:
    return _loads(file.read())


@contextmanager
def tables_and_tensors_only() -> Iterator[None]:
    """Let torch read such pickles alone while the block runs.

    Raises:
        ForbiddenPickleError: in the block, in the place of everything else.
    """
    load, module = torch.load, filesystem.pickle

    def load_tensors(*args: Any, **kwargs: Any) -> Any:
        try:
            return load(*args, **{**kwargs, "weights_only": True})
        except pickle.UnpicklingError as error:
            found = _UNSUPPORTED_GLOBAL.search(str(error))
            if found is None:
                raise
            raise ForbiddenPickleError(found.group(1)) from None

    limited = SimpleNamespace(**{**vars(pickle), "load": _load, "loads": _loads})
    torch.load = load_tensors
    filesystem.pickle = limited  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.load, filesystem.pickle = load, module
