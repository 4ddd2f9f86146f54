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
the result is kept, in ``.index`` beside them or in ``--data-cache-path``, until a shard changes.
"""

import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from megatron_aia.runtime.workers import available_cores, map_in_processes
from megatron_aia.shards.cache import cache_folder, keep_file
from megatron_aia.shards.codes import decode_codes
from megatron_aia.shards.folder import list_shards, listed_shards, read_description
from megatron_aia.shards.pictures import ShardPicture
from megatron_aia.shards.problems import corrupt_sample, refuse
from megatron_aia.shards.raw_sample import CorruptSampleError, Picture, RawSample
from megatron_aia.shards.reader import PictureEntry, parse_description
from megatron_aia.shards.shard import Shard
from megatron_aia.shards.table import SampleTable
from megatron_aia.shards.walk import combine, find_duplicates, walk_shard

_FORMAT_VERSION = 3
_MAX_GAP = 1 << 16
"""Bytes between members of a sample that are rather read in vain than skipped by another read."""
_MIN_BYTES_PER_WORKER = 1 << 26
_NAMED_SHARDS = 3
_UNUSABLE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, MemoryError),
    *(RecursionError, zipfile.BadZipFile),
)
"""What a kept index raises that is damaged, or of another version."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one data folder, numbered in the order of shards and members."""

    folder: str
    """Path or URL."""
    shards: tuple[Shard, ...]
    table: SampleTable
    fingerprint: str
    """Hash of shard names, texts and member places; the same for a copy of the folder."""
    cache: Path
    """Folder of files derived from the shards."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def tasks(self) -> np.ndarray:
        """uint8 ``[len(self)]``, values of ``Task``."""
        return self.table.tasks

    def key(self, number: int) -> str:
        """Return the sample's name, ``<shard file>/<key in the shard>``."""
        return f"{self._shard(number).name}/{self._key_in_shard(number)}"

    def read(self, number: int, codebook_size: int) -> RawSample:
        """Read one sample, but no picture of it.

        Raises:
            CorruptSampleError: its JSON or its codes do not fit their checksum, or the codes are no
                uint16 arrays of the announced size, or hold a code outside ``[0, codebook_size)``.
            ValueError: the shard has changed.
            OSError: the shard cannot be read.
        """
        shard, key = self._shard(number), self._key_in_shard(number)
        places, is_picture = self.table.members(number)
        stored = [place for place, skip in zip(places, is_picture, strict=True) if not skip]
        contents = iter(_read_together(shard, stored))
        images: list[np.ndarray | Picture] = []
        try:
            description = parse_description(next(contents))
            if [isinstance(i, PictureEntry) for i in description.images] != is_picture[1:]:
                raise CorruptSampleError("its json is not the one that was indexed")
            for place, entry in zip(places[1:], description.images, strict=True):
                checksum = description.checksums.get(entry.member)
                if isinstance(entry, PictureEntry):
                    images.append(ShardPicture(shard, *place, key, entry.member, checksum))
                else:
                    images.append(decode_codes(next(contents), entry, codebook_size, checksum))
        except CorruptSampleError as error:
            shard.check_unchanged()
            raise corrupt_sample(str(shard), f"sample {key}: {error}") from None
        return RawSample(self.key(number), description.task, description.turns, tuple(images))

    def _key_in_shard(self, number: int) -> str:
        return self.table.key(number).decode()

    def _shard(self, number: int) -> Shard:
        return self.shards[self.table.shard_numbers[number]]


def _read_together(shard: Shard, places: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return what stands at each (offset, size), by one read where they stand close together."""
    start = min(offset for offset, _ in places)
    stop = max(offset + size for offset, size in places)
    if stop - start > sum(size for _, size in places) + _MAX_GAP:
        return [shard.read(*place) for place in places]
    data = shard.read(start, stop - start)
    return [data[offset - start :][:size] for offset, size in places]


def open_index(
    folder: str | Path, cache_path: str | Path | None = None, num_workers: int | None = None
) -> ShardIndex:
    """Index the ``*.tar`` shards of a folder, or take the index that is kept.

    Args:
        folder: path or URL.
        cache_path: keeps the index; None for ``.index`` inside the folder.
        num_workers: processes that read the shards; None for as many as there is work for.

    Raises:
        ValueError: the folder or its shards are missing, a shard is cut short or damaged, a
            sample is not complete, or two samples have the same key.
        OSError: a shard cannot be read.
    """
    cache = cache_folder(folder, cache_path)
    shards = list_shards(folder)
    kept = _load(str(folder), shards, cache)
    if kept is not None:
        return kept
    logger.info("indexing %d shards of %s", len(shards), folder)
    _warn_of_absent(folder, shards)
    if num_workers is None:
        num_bytes = sum(shard.size for shard in shards)
        num_workers = min(available_cores(), num_bytes // _MIN_BYTES_PER_WORKER)
    parts = list(map_in_processes(walk_shard, shards, num_workers, "index", "shards"))
    table, fingerprint = combine(parts)
    for problem in find_duplicates(shards, table):
        refuse(problem)
    if not len(table):
        raise ValueError(f"{folder}: its shards hold no samples; rebuild or delete the shards")
    index = ShardIndex(str(folder), shards, table, fingerprint, cache)
    save_index(index)
    return index


def _warn_of_absent(folder: str | Path, shards: Sequence[Shard]) -> None:
    """Tell of shards that the writer of the folder made and that are not there."""
    try:
        listed = listed_shards(read_description(folder) or {}) or []
    except ValueError:
        return
    absent = sorted({name for name, _ in listed} - {shard.name for shard in shards})
    if absent:
        logger.warning(
            "%s: dataset.json lists %d shards that are not there: %s",
            *(folder, len(absent), ", ".join(absent[:_NAMED_SHARDS])),
        )


def save_index(index: ShardIndex) -> None:
    """Keep an index for later calls of ``open_index``."""
    columns = {column.name: getattr(index.table, column.name) for column in fields(SampleTable)}
    header = {
        "format_version": _FORMAT_VERSION,
        "fingerprint": index.fingerprint,
        "shards": _list_files(index.shards),
    }
    # First the table under a name of its own, then the file that points to it.
    table = index.cache / f"table-{index.fingerprint}.npz"
    keep_file(table, lambda file: np.savez(file, **columns))
    keep_file(index.cache / "index.json", lambda file: file.write(json.dumps(header).encode()))


def _load(folder: str, shards: tuple[Shard, ...], cache: Path) -> ShardIndex | None:
    """Return the kept index, or None if there is none for exactly these shards."""
    try:
        header = json.loads((cache / "index.json").read_bytes())
        if header["format_version"] != _FORMAT_VERSION or header["shards"] != _list_files(shards):
            return None
        fingerprint = str(header["fingerprint"])
        table = _load_table(cache / f"table-{fingerprint}.npz")
    except _UNUSABLE:
        return None
    if table is None or not table.fits([shard.size for shard in shards]):
        return None
    return ShardIndex(folder, shards, table, fingerprint, cache)


def _load_table(path: Path) -> SampleTable | None:
    with np.load(path, allow_pickle=False) as columns:
        # As written, it is not compressed; a small file must not become a large table.
        if sum(info.file_size for info in columns.zip.infolist()) > path.stat().st_size:
            return None
        return SampleTable(**{column.name: columns[column.name] for column in fields(SampleTable)})


def _list_files(shards: Sequence[Shard]) -> list[list[str | int]]:
    return [[shard.name, shard.size, shard.version] for shard in shards]
