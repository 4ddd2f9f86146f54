"""One pass over a shard: which samples it holds, and whether it is whole.

``tarfile`` takes a damaged header, or a file that stops between two members, for the end of the
archive and says nothing. Samples would be lost silently, so the end mark is checked here.
"""

import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from megatron_aia.aia.roles import Task
from megatron_aia.data.reader import Shard, damaged, parse_description

_CHUNK = 1 << 20
_MEMBER_NAME = re.compile(r"(?P<key>(?:.*/)?[^./]+)\.(?P<suffix>[^/]+)", re.DOTALL)
"""The key goes up to the first dot after the last slash, as WebDataset has it."""


@dataclass(frozen=True)
class Member:
    """Where the bytes of one file of a sample stand in its shard."""

    suffix: str
    """File name after the key and its dot, for example ``json`` or ``0.emu3.npy``."""
    offset: int
    size: int


@dataclass(frozen=True)
class SampleEntry:
    """A sample found in a shard."""

    key: str
    task: Task
    description: bytes
    """Its JSON member."""
    members: tuple[Member, ...]
    """The JSON member, then the codes or the picture of each image tag, in order."""


def scan_shard(shard: Shard) -> Iterator[SampleEntry]:
    """Yield the samples of a shard in order.

    Raises:
        ValueError: the shard is cut short or damaged, or a sample of it is not complete.
    """
    for key, group in groupby(_list_members(shard), key=lambda named: named[0]):
        members: dict[str, Member] = {}
        for _, member in group:
            if member.suffix in members:
                raise damaged(shard.path, f"{key}.{member.suffix} is there twice")
            members[member.suffix] = member
        try:
            yield _make_entry(shard, key, members)
        except ValueError as error:
            raise damaged(shard.path, f"sample {key}: {error}") from None


def _make_entry(shard: Shard, key: str, members: dict[str, Member]) -> SampleEntry:
    if "json" not in members:
        raise ValueError(f"no json beside {', '.join(members)}")
    data = shard.read(members["json"].offset, members["json"].size)
    description = parse_description(data)
    used = ["json", *(entry.member for entry in description.images)]
    absent = [suffix for suffix in used if suffix not in members]
    if absent:
        raise ValueError(f"its {', '.join(absent)} is missing")
    return SampleEntry(key, description.task, data, tuple(members[suffix] for suffix in used))


def _list_members(shard: Shard) -> Iterable[tuple[str, Member]]:
    """Return (sample key, member) of every file, having checked that the archive is whole."""
    try:
        with tarfile.open(shard.path, "r:") as archive:
            files = [info for info in archive if info.isfile()]
            end = archive.offset
    except (tarfile.TarError, ValueError) as error:
        raise damaged(shard.path, f"cut short or no plain tar file ({error})") from None
    _check_end(shard, end)
    for info in files:
        match = _MEMBER_NAME.fullmatch(info.name)
        if match is None:
            raise damaged(shard.path, f"member {info.name} is not named KEY.SUFFIX")
        yield match["key"], Member(match["suffix"].lower(), info.offset_data, info.size)


def _check_end(shard: Shard, end: int) -> None:
    """Check that the archive goes on from byte ``end`` with its end mark, and zeros only."""
    if shard.size < end + tarfile.BLOCKSIZE:
        raise damaged(shard.path, f"cut short after {shard.size} bytes, it has no end mark")
    with shard.path.open("rb") as file:
        file.seek(end)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise damaged(shard.path, f"the header at byte {end} is damaged")
        while chunk := file.read(_CHUNK):
            if any(chunk):
                raise damaged(shard.path, f"there is data after the end mark at byte {end}")
