"""Random access to the samples of a folder of WebDataset shards.

A sample is a run of adjacent files with one key:

* ``KEY.json``: ``task`` ("generation", "understanding", "text" or "mixed"), ``conversations``
  (``[{"from": "human" | "gpt", "value": text}]``, with an ``<image>`` tag where an image stands),
  ``codes`` (``[{"member": suffix, "height": h, "width": w}, ...]``) and ``images``
  (``[{"member": suffix}, ...]``). Each of the two has one entry for each tag, in order, or is
  empty or left out; an entry may be null. A tag stands for its codes, and for its picture where
  it has no codes;
* one ``KEY.SUFFIX`` for each entry that is used: a uint16 ``[h, w]`` array of image codes, or a
  picture file.

Other files of a sample are left alone, so is a picture beside codes. The tar files are walked once;
the result is kept in ``.index`` beside them until a shard changes.
"""

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from megatron_aia.data.cache import cache_folder, replace_file
from megatron_aia.data.pictures import ShardPicture
from megatron_aia.data.reader import (
    CodesEntry,
    Shard,
    damaged,
    damaged_sample,
    decode_codes,
    parse_description,
)
from megatron_aia.data.sample import DamagedSample, Picture, RawSample
from megatron_aia.data.scan import SampleEntry, scan_shard

_FORMAT_VERSION = 2
_T = TypeVar("_T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleTable:
    """Where every sample stands: ``n`` samples, ``m`` members, ``k`` bytes of keys."""

    tasks: np.ndarray
    """uint8 ``[n]``."""
    shard_numbers: np.ndarray
    """int32 ``[n]``."""
    member_starts: np.ndarray
    """int64 ``[n + 1]``: sample i has the members from ``[i]`` up to ``[i + 1]``, JSON first."""
    member_offsets: np.ndarray
    """int64 ``[m]``: byte of the shard where the member's content begins."""
    member_sizes: np.ndarray
    """int64 ``[m]``: bytes."""
    key_starts: np.ndarray
    """int64 ``[n + 1]``: the key of sample i is ``keys[key_starts[i]:key_starts[i + 1]]``."""
    keys: np.ndarray
    """uint8 ``[k]``: UTF-8."""

    @classmethod
    def collect(cls, samples: Iterable[tuple[int, SampleEntry]]) -> "SampleTable":
        """Build the table from (shard number, sample) pairs."""
        tasks, shard_numbers, keys, key_ends = [], [], bytearray(), [0]
        offsets, sizes, member_ends = [], [], [0]
        for shard_number, sample in samples:
            tasks.append(int(sample.task))
            shard_numbers.append(shard_number)
            keys += sample.key.encode()
            key_ends.append(len(keys))
            offsets += [member.offset for member in sample.members]
            sizes += [member.size for member in sample.members]
            member_ends.append(len(offsets))
        return cls(
            tasks=np.array(tasks, np.uint8),
            shard_numbers=np.array(shard_numbers, np.int32),
            member_starts=np.array(member_ends, np.int64),
            member_offsets=np.array(offsets, np.int64),
            member_sizes=np.array(sizes, np.int64),
            key_starts=np.array(key_ends, np.int64),
            keys=np.frombuffer(bytes(keys), np.uint8),
        )


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one data folder, numbered in the order of shards and members."""

    folder: Path
    shards: tuple[Shard, ...]
    table: SampleTable
    fingerprint: str
    """Hash of shard names, texts and member places; the same for a copy of the folder."""

    def __len__(self) -> int:
        return len(self.table.tasks)

    @property
    def tasks(self) -> np.ndarray:
        """uint8 ``[len(self)]``, values of ``Task``."""
        return self.table.tasks

    def key(self, number: int) -> str:
        """Return the sample's name, ``<shard file>/<key in the shard>``."""
        return f"{self._shard(number).path.name}/{self._key_in_shard(number)}"

    def read(self, number: int, codebook_size: int) -> RawSample:
        """Read one sample, but no picture of it.

        Raises:
            DamagedSample: its codes are not uint16 arrays of the announced size, or hold a code
                outside ``[0, codebook_size)``.
            ValueError: the shard has changed.
            OSError: the shard cannot be read.
        """
        shard, key = self._shard(number), self._key_in_shard(number)
        first, stop = self.table.member_starts[number : number + 2]
        places = [
            (int(self.table.member_offsets[i]), int(self.table.member_sizes[i]))
            for i in range(first, stop)
        ]
        description = _decode(shard, key, parse_description, shard.read(*places[0]))
        images: list[np.ndarray | Picture] = []
        for place, entry in zip(places[1:], description.images, strict=True):
            if isinstance(entry, CodesEntry):
                data = shard.read(*place)
                images.append(_decode(shard, key, decode_codes, data, entry, codebook_size))
            else:
                images.append(ShardPicture(shard, *place, f"sample {key}: {entry.member}"))
        return RawSample(self.key(number), description.task, description.turns, tuple(images))

    def _key_in_shard(self, number: int) -> str:
        start, stop = self.table.key_starts[number : number + 2]
        return self.table.keys[start:stop].tobytes().decode()

    def _shard(self, number: int) -> Shard:
        return self.shards[self.table.shard_numbers[number]]


def _decode(shard: Shard, key: str, decode: Callable[..., _T], *arguments: Any) -> _T:
    """Call ``decode``; its errors name the sample."""
    try:
        return decode(*arguments)
    except DamagedSample as error:
        raise damaged_sample(shard.path, f"sample {key}: {error}") from None


def open_index(folder: str | Path) -> ShardIndex:
    """Index the ``*.tar`` shards of a folder, or take the index that is kept there.

    Raises:
        ValueError: the folder or its shards are missing, a shard is cut short or damaged, a
            sample is not complete, or two samples have the same key.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; build it with tools/build_shards.py")
    shards = tuple(Shard.at(path) for path in sorted(folder.glob("*.tar")))
    if not shards:
        raise ValueError(f"{folder}: no *.tar shards; build them with tools/build_shards.py")
    return _load(folder, shards) or _build(folder, shards)


def _build(folder: Path, shards: tuple[Shard, ...]) -> ShardIndex:
    logger.info("indexing %d shards of %s", len(shards), folder)
    digest = hashlib.sha256()
    table = SampleTable.collect(_scan(shards, digest.update))
    if not len(table.tasks):
        raise ValueError(f"{folder}: its shards hold no samples; rebuild or delete the shards")
    index = ShardIndex(folder, shards, table, digest.hexdigest()[:16])
    _save(index)
    return index


def _scan(
    shards: Sequence[Shard], update_digest: Callable[[bytes], None]
) -> Iterator[tuple[int, SampleEntry]]:
    """Yield (shard number, sample), every key once, and digest what the samples are."""
    shard_of_key: dict[str, str] = {}
    for number, shard in enumerate(shards):
        name = shard.path.name
        update_digest(name.encode())
        for sample in scan_shard(shard):
            if sample.key in shard_of_key:
                other = shard_of_key[sample.key]
                raise damaged(shard.path, f"key {sample.key} is there before, in {other}")
            shard_of_key[sample.key] = name
            update_digest(repr((sample.key, sample.members)).encode())
            update_digest(sample.description)
            yield number, sample


def _save(index: ShardIndex) -> None:
    """Keep the index: first the table under a name of its own, then the file that points to it."""
    columns = {column.name: getattr(index.table, column.name) for column in fields(SampleTable)}
    header = {
        "format_version": _FORMAT_VERSION,
        "fingerprint": index.fingerprint,
        "shards": _list_files(index.shards),
    }
    cache = cache_folder(index.folder)
    replace_file(cache / f"table-{index.fingerprint}.npz", lambda file: np.savez(file, **columns))
    replace_file(cache / "index.json", lambda file: file.write(json.dumps(header).encode()))


def _load(folder: Path, shards: tuple[Shard, ...]) -> ShardIndex | None:
    """Return the kept index, or None if there is none for exactly these shards."""
    cache = cache_folder(folder)
    try:
        header = json.loads((cache / "index.json").read_bytes())
        if header["format_version"] != _FORMAT_VERSION or header["shards"] != _list_files(shards):
            return None
        fingerprint = str(header["fingerprint"])
        with np.load(cache / f"table-{fingerprint}.npz", allow_pickle=False) as columns:
            table = SampleTable(
                **{column.name: columns[column.name] for column in fields(SampleTable)}
            )
    except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile):
        return None
    return ShardIndex(folder, shards, table, fingerprint)


def _list_files(shards: Sequence[Shard]) -> list[list[str | int]]:
    return [[shard.path.name, shard.size, shard.modified] for shard in shards]
