"""Tensors by name out of a folder of safetensors files or pickles that hold nothing but tensors."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_aia.runtime.optional import import_optional


def read_tensors(folder: Path, rename: Callable[[str], str | None]) -> dict[str, Any]:
    """Return the tensors that ``rename`` gives a name, as fp32 on the CPU.

    Args:
        folder: with ``*.safetensors``, or else ``pytorch_model*.bin``.
        rename: name in the file to name in the result; None for what is not wanted.

    Raises:
        ValueError: a file cannot be read.
    """
    tensors: dict[str, Any] = {}
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    for file in sorted(folder.glob("*.safetensors")) or pickles:
        read = _read_safetensors if file.suffix == ".safetensors" else _read_pickle
        try:
            tensors |= {name: tensor.float() for name, tensor in read(file, rename)}
        except Exception as error:  # a damaged file raises what its library likes
            raise ValueError(f"{file} cannot be read: {error}") from error
    return tensors


def _read_safetensors(file: Path, rename: Callable[[str], str | None]) -> Iterator[tuple[str, Any]]:
    with import_optional("safetensors", "hf").safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            if ours := rename(name):
                yield ours, tensors.get_tensor(name)


def _read_pickle(file: Path, rename: Callable[[str], str | None]) -> Iterator[tuple[str, Any]]:
    torch = import_optional("torch", "hf")
    for name, tensor in torch.load(file, "cpu", weights_only=True, mmap=True).items():
        if ours := rename(name):
            yield ours, tensor
