"""Tar files of pictures and captions in WebDataset's form, as BLIP3o publishes them.

A sample is a run of adjacent files of one key: ``KEY.txt`` and ``KEY.jpg``, for example. The
archives are listed with ``tarfile``, and their end is checked: WebDataset's reader takes an archive
that was cut between two files for a whole one.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from megatron_aia.building.sources.base import FileCounts, Format, Part, RawRecord, Slice, Source
from megatron_aia.building.sources.field_names import PICTURE_FIELDS
from megatron_aia.runtime.workers import available_cores, map_in_processes

_NAME = re.compile(r"(?P<key>(?:.*/)?[^./]+)\.(?P<suffix>[^/]+)", re.DOTALL)
_SUFFIXES = ("txt", "caption", *PICTURE_FIELDS)


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

    def read(self) -> Iterator[RawRecord]:
        """See ``Part``."""
        for part in self.slices:
            with _open(part.file) as archive:
                samples = _samples(archive, part.file)
                for key, members in islice(samples, part.start, part.stop):
                    yield {"__key__": key, **_read_members(archive, members)}


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
    with _open(file) as archive:
        return sum(1 for _ in _samples(archive, file))


def _open(file: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(file, "r:")
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"cannot read records from {file}: {error}") from None


def _samples(
    archive: tarfile.TarFile, file: Path
) -> Iterator[tuple[str, Sequence[tarfile.TarInfo]]]:
    """Yield (key, its files), having checked that the archive is whole."""
    try:
        members = [member for member in archive if member.isfile()]
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"cannot read records from {file}: {error}") from None
    with file.open("rb") as bytes_of_file:
        bytes_of_file.seek(archive.offset)
        if bytes_of_file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"cannot read records from {file}: cut or damaged, copy it again")
    for key, group in groupby(members, key=lambda member: _split(member.name)[0]):
        yield key, list(group)


def _split(name: str) -> tuple[str, str]:
    match = _NAME.fullmatch(name)
    return (match["key"], match["suffix"].lower()) if match else (name, "")


def _read_members(archive: tarfile.TarFile, members: Sequence[tarfile.TarInfo]) -> RawRecord:
    raw: RawRecord = {}
    for member in members:
        suffix = _split(member.name)[1]
        file = archive.extractfile(member) if suffix in _SUFFIXES else None
        if file is not None:
            contents = file.read()
            is_picture = suffix in PICTURE_FIELDS
            raw[suffix] = contents if is_picture else contents.decode("utf-8", "replace")
    return raw


def _is_tars(path: Path) -> bool:
    return path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar")))


FORMAT = Format("tar", _is_tars, open_tars)
