"""A tar file of samples, as it was when it was indexed."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_OPEN_SHARDS = 256
Read = Callable[[int, int], bytes]
"""Returns the bytes of (offset, size), or raises."""


class Shard(ABC):
    """A tar file of samples. A copy of the object may go to another process."""

    size: int
    """Bytes."""
    version: int | str
    """Changes whenever the file is written anew."""

    @property
    @abstractmethod
    def name(self) -> str:
        """File name in its folder."""

    @abstractmethod
    def __str__(self) -> str:
        """Return path or URL, as errors quote it."""

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes.

        Raises:
            ValueError: the file is not the one that was indexed.
            OSError: the file cannot be read, or not all of it.
        """

    def check_unchanged(self) -> None:
        """Check that the file is still the one that was indexed, where ``read`` does not always.

        Raises:
            ValueError: it is not.
            OSError: it cannot be reached.
        """
        return

    def front_to_back(self) -> Read:
        """Return another ``read`` for small pieces in the order in which they stand."""
        return self.read


@dataclass(frozen=True)
class LocalShard(Shard):
    """A shard in a file system."""

    path: Path
    size: int
    version: int
    """Modification time in nanoseconds."""

    @classmethod
    def at(cls, path: Path) -> "LocalShard":
        """Describe the file at ``path``."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    @property
    def name(self) -> str:
        """See ``Shard``."""
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)

    def read(self, offset: int, size: int) -> bytes:
        """See ``Shard``."""
        descriptor = _open(self)
        status = os.fstat(descriptor.number)
        if (status.st_size, status.st_mtime_ns) != (self.size, self.version):
            raise changed(self)
        # pread moves no file position, so a forked process may go on with the same descriptor.
        data = os.pread(descriptor.number, size, offset)
        if len(data) < size:
            raise OSError(f"{self}: {len(data)} of {size} bytes could be read at {offset}")
        return data


class _Descriptor:
    """A file descriptor that closes once neither the cache nor a reading thread holds it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=_OPEN_SHARDS)
def _open(shard: LocalShard) -> _Descriptor:
    return _Descriptor(shard.path)


def changed(shard: Shard) -> ValueError:
    """Return the error of a shard that is not the one that was indexed."""
    return ValueError(f"{shard}: changed since it was indexed; start the run again")
