"""Lists of Emu3's data preparation: codes that its authors' tokeniser has made already.

``{"prefix": folder, "path_list": [file, ...]}`` names files of ``torch.save`` that hold
``{"name", "images": codes [h, w], "texts": caption}``. They are pickles, so only plain values,
tensors and plain numpy arrays are loaded: a list from elsewhere cannot run code.
"""

import functools
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_aia.building.convert_records import RecordError
from megatron_aia.building.sources.base import Format, Part, RawRecord, Source, is_failure_of_disk
from megatron_aia.runtime.optional import import_optional

CODEBOOK_SIZE = 32_768
"""Of the tokeniser published with Emu3."""
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class CodeList:
    """The ``Source`` of such a list."""

    path: Path
    prefix: Path
    names: tuple[str, ...]
    holds_pictures = True
    codebook_size = CODEBOOK_SIZE

    @property
    def files(self) -> tuple[Path]:
        """See ``Source``."""
        return (self.path,)

    def __len__(self) -> int:
        return len(self.names)

    def part(self, start: int, stop: int) -> Part:
        """See ``Source``."""
        return _CodeListPart(self.prefix, self.names[start:stop])


@dataclass(frozen=True)
class _CodeListPart:
    prefix: Path
    names: tuple[str, ...]

    def read(self) -> Iterator[RawRecord | RecordError]:
        """See ``Part``."""
        for name in self.names:
            try:
                yield _load(self.prefix / name)
            except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
                if is_failure_of_disk(error):
                    raise
                details = f"{self.prefix / name}: {str(error).partition(chr(10))[0]}"
                yield RecordError(name, "its file cannot be loaded", details)


def _load(path: Path) -> RawRecord:
    torch = import_optional("torch", "hf")
    with torch.serialization.safe_globals(_numpy_globals()):
        entry = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(entry, dict):
        raise ValueError("it holds no dictionary")
    codes = entry.get("images")
    if isinstance(codes, torch.Tensor):
        codes = codes.numpy()
    if not isinstance(codes, np.ndarray) or codes.dtype.kind not in "iu":
        raise ValueError("its images are no integers")
    if codes.ndim != 2 or not codes.size or codes.min() < 0 or codes.max() >= CODEBOOK_SIZE:
        raise ValueError(f"its images are no grid of codes below {CODEBOOK_SIZE}")
    return {**entry, "images": codes}


@functools.cache
def _numpy_globals() -> list[Any]:
    """Return what a pickle of a plain array calls; numpy 1 and 2 name the first differently."""
    rebuild = np.empty(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in "bBhHiIlLqQ"}
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    return [*((rebuild, name) for name in names), np.ndarray, np.dtype, *dtypes]


def open_list(path: Path) -> Source:
    """Read the list.

    Raises:
        ValueError: it cannot be read, or is no such list.
    """
    try:
        entry = json.loads(path.read_bytes())
        names = entry["path_list"]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("path_list holds something else than paths")
        return CodeList(path, Path(entry.get("prefix") or ""), tuple(names))
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"cannot read records from {path}: {error}") from None


def _is_list(path: Path) -> bool:
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).lstrip()
    return head.startswith(b"{") and b'"path_list"' in head


FORMAT = Format("emu3_codes", _is_list, open_list)
