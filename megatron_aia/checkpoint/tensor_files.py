"""Files of tensors as Hugging Face has them: one, or shards with an index."""

import json
import pickle
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

import torch

from megatron_aia.runtime.optional import import_optional

INDEX_FILE = "model.safetensors.index.json"
WRITTEN_BY = {"written_by": "megatron_aia"}
"""In the index of a folder that this program made, so that it may replace it."""
_BIN_INDEX = "pytorch_model.bin.index.json"
_SHARD_BYTES = 2_000_000_000  # writing a shard may hold it twice
_CHECKED_AT_ONCE = 1 << 24
_SHARD = re.compile(r"(.*-)\d+-of-(\d{1,6})(\.\w+)")


class TensorFolder:
    """The tensors of a folder, read one at a time; no file stays in memory.

    ``.bin`` files are read with ``weights_only``, so nothing in them is executed.

    Args:
        folder: holds ``*.safetensors`` or ``*.bin``, sharded with an index or single.

    Raises:
        ValueError: there are none, a shard is missing or cut, or lacks a tensor of the index.
    """

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Path] = {}
        self._open_bin: tuple[Path, dict[str, torch.Tensor]] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Shape of every tensor."""
        self.num_bytes = 0
        """Size of all tensors."""
        files, index = _find_files(folder)
        for file in files:
            for name, shape, num_bytes in self._headers(file):
                if name in self._file_of:
                    raise ValueError(f"{name} is in {self._file_of[name].name} and in {file.name}")
                self._file_of[name] = file
                self.shapes[name] = shape
                self.num_bytes += num_bytes
        for name, file_name in index.items():
            if name not in self._file_of or self._file_of[name].name != file_name:
                raise ValueError(f"{folder / file_name} lacks {name}, which the index says it has")

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor, which may be a view of its file.

        Raises:
            ValueError: it cannot be read, or holds numbers that are not finite.
        """
        file = self._file_of[name]
        try:
            if file.suffix == ".bin":
                tensor = self._load_bin(file)[name]
            else:
                # Opened each time: a mapping that stays open keeps every page that was read.
                with _safe_open(file) as source:
                    tensor = source.get_tensor(name)
        except (OSError, RuntimeError) as error:
            raise _unreadable(file, error) from error
        check_finite(name, tensor)
        return tensor

    def _headers(self, file: Path) -> Iterator[tuple[str, tuple[int, ...], int]]:
        if file.suffix == ".bin":
            for name, tensor in self._load_bin(file).items():
                yield name, tuple(tensor.shape), tensor.nbytes
            return
        with _safe_open(file) as source:
            for name in source.keys():  # noqa: SIM118 - not a dictionary
                part = source.get_slice(name)
                shape = tuple(part.get_shape())
                # An empty slice knows the type and reads nothing.
                item = part[:0].element_size() if shape else source.get_tensor(name).element_size()
                yield name, shape, torch.Size(shape).numel() * item

    def _load_bin(self, file: Path) -> dict[str, torch.Tensor]:
        if self._open_bin is None or self._open_bin[0] != file:
            try:
                content = torch.load(file, weights_only=True, mmap=True, map_location="cpu")
            except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
                raise _unreadable(file, error) from error
            if not isinstance(content, dict) or not all(
                isinstance(tensor, torch.Tensor) for tensor in content.values()
            ):
                raise ValueError(f"{file} cannot be read: it is no table of tensors")
            self._open_bin = (file, content)
        return self._open_bin[1]


class TensorWriter:
    """Writes safetensors shards of bounded size and, at the end, their index.

    Args:
        folder: exists.
        shard_bytes: size at which a shard is written out.
    """

    def __init__(self, folder: Path, shard_bytes: int = _SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._names_of_shards: list[list[str]] = []
        self.num_bytes = 0
        """Bytes added so far."""
        self.num_tensors = 0
        """Tensors added so far."""

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self.num_tensors:
            self._flush()
            self._finish()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor.

        Raises:
            ValueError: it holds numbers that are not finite.
        """
        check_finite(name, tensor)
        pending = sum(waiting.nbytes for waiting in self._pending.values())
        if self._pending and pending + tensor.nbytes > self._shard_bytes:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self.num_bytes += tensor.nbytes
        self.num_tensors += 1

    def _flush(self) -> None:
        save_file = import_optional("safetensors.torch", "hf").save_file
        path = self._folder / _shard_name(len(self._names_of_shards), 0)
        save_file(self._pending, path, metadata={"format": "pt"})
        self._names_of_shards.append(list(self._pending))
        self._pending.clear()

    def _finish(self) -> None:
        """Name the shards by how many there are, which is known only now."""
        count = len(self._names_of_shards)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._names_of_shards):
            name = _shard_name(number, count)
            (self._folder / _shard_name(number, 0)).rename(self._folder / name)
            weight_map |= {tensor: name for tensor in names}
        index = {
            "metadata": {"total_size": self.num_bytes, **WRITTEN_BY},
            "weight_map": weight_map,
        }
        path = self._folder / INDEX_FILE
        path.write_text(json.dumps(index, indent=2) + "\n")
        for name in set(weight_map.values()):
            # safetensors makes files that only their owner can read.
            shutil.copymode(path, self._folder / name)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError if a floating-point tensor holds NaN or infinity."""
    parts = tensor.flatten().split(_CHECKED_AT_ONCE) if tensor.is_floating_point() else ()
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ValueError(f"{name} holds NaN or infinity; the checkpoint is damaged")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file.

    Raises:
        ValueError: it is missing, or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read: it is no JSON object")
    return content


def _find_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files of tensors, and the index (empty without one)."""
    for index_name, pattern in ((INDEX_FILE, "*.safetensors"), (_BIN_INDEX, "pytorch_model*.bin")):
        if (folder / index_name).is_file():
            index = read_json(folder / index_name).get("weight_map")
            if not _is_table(index):
                raise ValueError(
                    f"{folder / index_name} cannot be read: its weight_map is no table of names"
                )
            names = sorted(set(index.values()))
            if not all(Path(name).name == name for name in names):
                raise ValueError(f"{folder / index_name} cannot be read: it names other folders")
            missing = [name for name in names if not (folder / name).is_file()]
            if missing:
                raise ValueError(f"{folder / missing[0]} is missing; the index names it")
            return [folder / name for name in names], index
        if files := sorted(folder.glob(pattern)):
            _check_all_shards(files)
            return files, {}
    raise ValueError(f"{folder} holds no *.safetensors and no pytorch_model*.bin")


def _is_table(index: Any) -> TypeGuard[dict[str, str]]:
    return isinstance(index, dict) and all(isinstance(name, str) for name in index.values())


def _check_all_shards(files: Sequence[Path]) -> None:
    """Compare the shards of a folder without an index with the count in their names."""
    for file in files:
        found = _SHARD.fullmatch(file.name)
        if found is None:
            continue
        begin, count, end = found.groups()
        names = [f"{begin}{n:0{len(count)}d}-of-{count}{end}" for n in range(1, int(count) + 1)]
        missing = [name for name in names if not (file.parent / name).is_file()]
        if missing:
            raise ValueError(
                f"{file.parent / missing[0]} is missing; {file.name} says there is one"
            )


def _safe_open(file: Path) -> Any:
    safetensors = import_optional("safetensors", "hf")
    try:
        return safetensors.safe_open(file, framework="pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise _unreadable(file, error) from error


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _unreadable(path: Path, error: Exception) -> ValueError:
    first = (str(error).strip() or repr(error)).splitlines()[0]
    return ValueError(f"{path} cannot be read: {first}")
