"""Shards in object stores and on web servers, read by ranges through fsspec.

Passing faults are met by waiting and asking again; an object that is not the one that was indexed
stops the run, as a local file does.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from megatron_aia.shards.object_store import FileSystem, open_store, with_retries
from megatron_aia.shards.shard import Read, Shard, changed

_BLOCK = 1 << 23
"""Bytes of a request while a shard is read from front to back."""
_REQUESTS_AT_ONCE = 16
_SECONDS_BETWEEN_CHECKS = 300
"""A store that cannot be asked for one version only is asked this often whether it has changed."""


@dataclass(frozen=True)
class RemoteShard(Shard):
    """A shard behind a URL."""

    url: str
    size: int
    version: str
    """As its server names it: an ETag or a date."""

    @property
    def name(self) -> str:
        """See ``Shard``."""
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return self.url

    def read(self, offset: int, size: int) -> bytes:
        """See ``Shard``."""
        if size == 0:
            return b""
        store = open_store(self.url)
        if not store.reads_one_version and _last_check(self).is_over():
            self.check_unchanged()

        def fetch() -> bytes:
            data = store.read(self.url, offset, size, self.version)
            if data is None:
                raise changed(self)
            if len(data) != size:
                raise OSError(f"{len(data)} of {size} bytes came back")
            return data

        return with_retries(fetch, self.url)

    def check_unchanged(self) -> None:
        """See ``Shard``."""
        now = stat_shard(self.url)
        if (now.size, now.version) != (self.size, self.version):
            raise changed(self)
        _last_check(self).reset()

    def front_to_back(self) -> Read:
        """See ``Shard``."""

        # Two blocks: a sample's JSON may stand behind the header of the next sample.
        @lru_cache(maxsize=2)
        def block(number: int) -> bytes:
            start = number * _BLOCK
            return self.read(start, min(_BLOCK, self.size - start))

        def read(offset: int, size: int) -> bytes:
            first, start = divmod(offset, _BLOCK)
            last = (offset + size - 1) // _BLOCK
            if last - first > 1:
                return self.read(offset, size)
            data = block(first)[start : start + size]
            return data + block(last)[: size - len(data)] if last > first else data

        return read


class _LastCheck:
    def __init__(self) -> None:
        self._time = time.monotonic()

    def is_over(self) -> bool:
        return time.monotonic() - self._time > _SECONDS_BETWEEN_CHECKS

    def reset(self) -> None:
        self._time = time.monotonic()


@lru_cache(maxsize=1 << 16)
def _last_check(shard: RemoteShard) -> _LastCheck:
    return _LastCheck()


def stat_shard(url: str) -> RemoteShard:
    """Ask for size and version of one object.

    Raises:
        OSError: it is not there, or its size is not told.
    """
    store = open_store(url)
    return _shard(url, store, with_retries(lambda: store.info(url), url))


def list_remote_shards(folder: str, listed: list[tuple[str, int]] | None) -> tuple[Shard, ...]:
    """Describe the shards of a folder.

    Args:
        folder: its URL.
        listed: names and sizes by ``dataset.json``; needed where the server lists no folders.

    Raises:
        ValueError: there are none, or one has another size than by ``dataset.json``.
        OSError: the server cannot be reached.
    """
    store = open_store(folder)
    base = folder.rstrip("/")
    if not store.lists_folders:
        return _describe_listed(base, listed)
    try:
        entries = with_retries(lambda: store.list(base), folder)
    except FileNotFoundError:
        raise ValueError(f"{folder}: no such folder; upload one of shards there") from None
    shards = [_shard(f"{base}/{name}", store, info) for name, info in sorted(entries.items())]
    return tuple(shard for shard in shards if shard.name.endswith(".tar"))


def _describe_listed(base: str, listed: list[tuple[str, int]] | None) -> tuple[Shard, ...]:
    if listed is None:
        raise ValueError(
            f"{base}: this server lists no folders, and no dataset.json there lists the shards; "
            "upload the one that tools/build_shards.py wrote"
        )
    names = sorted(listed)
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        shards = list(pool.map(stat_shard, (f"{base}/{name}" for name, _ in names)))
    for shard, (_, size) in zip(shards, names, strict=True):
        if shard.size != size:
            raise ValueError(
                f"{shard}: has {shard.size} bytes, and {size} by dataset.json; upload it again"
            )
    return tuple(shards)


def read_remote_file(url: str) -> bytes | None:
    """Read a small file; return None if it is not there.

    Raises:
        OSError: the server cannot be reached.
    """
    store = open_store(url)
    try:
        return with_retries(lambda: store.read_whole(url), url)
    except FileNotFoundError:
        return None


def _shard(url: str, store: FileSystem, info: dict[str, Any]) -> RemoteShard:
    if not isinstance(info.get("size"), int):
        raise OSError(f"{url}: its server does not tell its size")
    return RemoteShard(url, info["size"], store.version(info))
