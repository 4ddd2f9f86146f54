"""Tar files of pictures and captions in WebDataset's form, as BLIP3o publishes them.

A sample is a run of adjacent files of one key: ``KEY.txt`` and ``KEY.jpg``, for example.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import NoReturn

from megatron_aia.building.convert_records import RecordError
from megatron_aia.building.sources.base import FileCounts, Format, Part, RawRecord, Slice, Source
from megatron_aia.building.sources.field_names import CAPTION_FIELDS, PICTURE_FIELDS
from megatron_aia.runtime.workers import available_cores, map_in_processes
from megatron_aia.shards.problems import Problem
from megatron_aia.shards.shard import LocalShard, Shard
from megatron_aia.shards.tar import TarMember, list_members, split_name

_SUFFIXES = (*CAPTION_FIELDS, *PICTURE_FIELDS)


@dataclass(frozen=True)
class TarRecords:
    """The ``Source`` of such files."""

    files: tuple[Path, ...]
    counts: FileCounts
    holds_pictures = True
    codebook_size = 0

    def __len__(self) -> int:
        return len(self.counts)

    def part(self, start: int, stop: int) -> Part:
        """See ``Source``."""
        return _TarPart(self.counts.slices(start, stop))


@dataclass(frozen=True)
class _TarPart:
    slices: tuple[Slice, ...]

    def read(self) -> Iterator[RawRecord | RecordError]:
        """See ``Part``."""
        for part in self.slices:
            shard = LocalShard.at(part.file)
            for key, members in islice(_samples(shard), part.start, part.stop):
                yield _record(shard, key, members)


def open_tars(path: Path) -> Source:
    """Count the samples of a tar file, or of the ``*.tar`` files of a folder.

    Raises:
        ValueError: there is no tar file, or one is cut short or damaged.
    """
    files = tuple(sorted(path.glob("*.tar"))) if path.is_dir() else (path,)
    if not files:
        raise ValueError(f"cannot read records from {path}: it has no *.tar files")
    counts = list(map_in_processes(_count, files, available_cores(), "count samples", "files"))
    return TarRecords(files, FileCounts(files, counts))


def _count(file: Path) -> int:
    try:
        return sum(1 for _ in _samples(LocalShard.at(file)))
    except OSError as error:
        raise ValueError(f"cannot read records from {file}: {error}") from None


def _samples(shard: Shard) -> Iterator[tuple[str, Sequence[TarMember]]]:
    """Yield (key, its files)."""
    members = list_members(shard, _refuse, shard.front_to_back())
    for key, group in groupby(members, key=lambda member: split_name(member.name)[0]):
        yield key, list(group)


def _refuse(problem: Problem) -> NoReturn:
    raise ValueError(f"cannot read records from {problem.shard}: {problem.text}; copy it again")


def _record(shard: Shard, key: str, members: Sequence[TarMember]) -> RawRecord | RecordError:
    suffixes = [split_name(member.name)[1] for member in members]
    doubled = sorted({suffix for suffix in suffixes if suffixes.count(suffix) > 1})
    if doubled:
        return RecordError(key, "a file of a tar stands there twice", f"{key}.{doubled[0]}")
    if not (set(suffixes) & set(CAPTION_FIELDS) and set(suffixes) & set(PICTURE_FIELDS)):
        return RecordError(
            key,
            "a sample of a tar is a caption and a picture that follow each other",
            f"found {', '.join(suffixes)}; captions are {' '.join(CAPTION_FIELDS)}, pictures "
            f"{' '.join(PICTURE_FIELDS)}",
        )
    return {"__key__": key, **_read_members(shard, members)}


def _read_members(shard: Shard, members: Sequence[TarMember]) -> RawRecord:
    raw: RawRecord = {}
    for member in members:
        suffix = split_name(member.name)[1]
        if suffix in _SUFFIXES:
            contents = shard.read(member.offset, member.size)
            is_picture = suffix in PICTURE_FIELDS
            raw[suffix] = contents if is_picture else contents.decode("utf-8", "replace")
    return raw


def _is_tars(path: Path) -> bool:
    return path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar")))


FORMAT = Format("tar", _is_tars, open_tars)
