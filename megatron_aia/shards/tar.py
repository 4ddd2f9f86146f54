"""The headers of a tar file, one by one.

``tarfile`` takes a damaged header, or a file that stops between two members, for the end of the
archive and says nothing; a hostile header can make it read without end. So only single headers are
parsed by it, and the way from one to the next is gone here.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_aia.shards.problems import Problem, ProblemKind, Report
from megatron_aia.shards.shard import Read, Shard

_MEMBER_NAME = re.compile(r"(?P<key>(?:.*/)?[^./]+)\.(?P<suffix>[^/]+)", re.DOTALL)
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_MAGIC = b"ustar"
_MAGIC_OFFSET = 257
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_METADATA = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)
_MAX_METADATA = 1 << 16
_MAX_SIZES = {
    **dict.fromkeys(_FILES, 1 << 62),
    **dict.fromkeys(_METADATA, _MAX_METADATA),
    tarfile.DIRTYPE: 0,
}
"""Bytes of content, by type. Where a name and times must fit, nobody's memory is to be filled."""
_OTHER_TYPES = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclass(frozen=True)
class TarMember:
    """A regular file in a tar file."""

    name: str
    header: int
    """Byte where its first header stands."""
    offset: int
    """Byte where its content begins."""
    size: int
    """Bytes of its content."""


def split_name(name: str) -> tuple[str, str]:
    """Return the key of a member's sample, and what follows its dot in lower case.

    The key goes up to the first dot after the last slash, as WebDataset has it. A name without such
    a dot is all key, and nothing follows.
    """
    match = _MEMBER_NAME.fullmatch(name)
    return (match["key"], match["suffix"].lower()) if match else (name, "")


def list_members(shard: Shard, report: Report, read: Read) -> Iterator[TarMember]:
    """Yield the regular files of a tar file in order, and check that the archive is whole.

    Folders are left out. Anything else that is no regular file is a problem: samples have no links
    or devices.
    """
    return _Walk(shard, report, read).members()


class _Walk:
    def __init__(self, shard: Shard, report: Report, read: Read) -> None:
        self._shard = shard
        self._tell = report
        self._read = read
        self._metadata: dict[str, str] = {}
        """Of the next member: what its header has no room for."""
        self._first_header = 0
        """Of the next member: byte of its first header."""

    def members(self) -> Iterator[TarMember]:
        position: int | None = 0
        while position is not None:
            if position + _BLOCK > self._shard.size:
                self._report_cut()
                return
            if not self._metadata:
                self._first_header = position
            block = self._read(position, _BLOCK)
            if not any(block):
                position = self._check_end(position)
                continue
            info = self._parse(block, position)
            if info is None:
                position = self._next_header(position + _BLOCK)
                continue
            content = position + _BLOCK
            if content + info.size > self._shard.size:
                self._report_cut()
                return
            position = content + -(-info.size // _BLOCK) * _BLOCK
            if info.type in _METADATA:
                self._take_metadata(info, content)
                continue
            if info.type in _FILES:
                yield TarMember(info.name, self._first_header, content, info.size)
            self._metadata = {}

    def _parse(self, block: bytes, position: int) -> tarfile.TarInfo | None:
        """Parse a header; return None, having told why, if it cannot be used."""
        damage = f"the header at byte {position} is damaged"
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            self._report("header", position, damage)
            return None
        if info.type in _FILES:
            info.name = self._metadata.get("path", info.name)
            info.size = int(self._metadata.get("size", info.size))
        largest = _MAX_SIZES.get(info.type)
        if largest is None:
            kind = _OTHER_TYPES.get(info.type, "of an unknown type")
            self._report("member type", position, f"the member at byte {position} is {kind}")
        elif not 0 <= info.size <= largest:
            self._report("header", position, damage)
        else:
            return info
        return None

    def _take_metadata(self, info: tarfile.TarInfo, offset: int) -> None:
        """Keep what a member's header has no room for."""
        data = self._read(offset, info.size)
        try:
            if info.type == tarfile.GNUTYPE_LONGNAME:
                self._metadata["path"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif info.type == tarfile.XHDTYPE:
                self._metadata |= _parse_pax(data)
        except ValueError:
            text = f"the extended header at byte {offset} is damaged"
            self._report("header", offset, text)

    def _check_end(self, position: int) -> int | None:
        """Check that nothing follows the end mark; return where members go on all the same."""
        if self._metadata:
            text = f"the extended header at byte {self._first_header} has no member"
            self._report("header", self._first_header, text)
        for start in range(position, self._shard.size, _CHUNK):
            chunk = self._read(start, min(_CHUNK, self._shard.size - start))
            if chunk.count(0) < len(chunk):
                text = f"there is data after the end mark at byte {position}"
                self._report("trailing data", position, text)
                return self._next_header(start)
        return None

    def _next_header(self, position: int) -> int | None:
        """Return the first byte from ``position`` on where a header stands that is whole."""
        self._metadata = {}
        while position + _BLOCK <= self._shard.size:
            size = min(_CHUNK, self._shard.size - position) // _BLOCK * _BLOCK
            chunk = self._read(position, size)
            found = chunk.find(_MAGIC)
            while found >= 0:
                start, rest = divmod(found, _BLOCK)
                if rest == _MAGIC_OFFSET and _is_header(chunk[start * _BLOCK :][:_BLOCK]):
                    return position + start * _BLOCK
                found = chunk.find(_MAGIC, found + 1)
            position += size
        return None

    def _report_cut(self) -> None:
        size = self._shard.size
        self._report("cut", size, f"cut short after {size} bytes, it has no end mark")

    def _report(self, kind: ProblemKind, offset: int, text: str) -> None:
        self._tell(Problem(str(self._shard), offset, "", kind, text))


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _parse_pax(data: bytes) -> dict[str, str]:
    """Read the records ``LENGTH KEY=VALUE`` of a pax header, LENGTH being that of the record.

    Raises:
        ValueError: they are not of that form, or describe a sparse file.
    """
    records: dict[str, str] = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or len(length) > len(str(_MAX_METADATA)):
            raise ValueError("no length")
        record = data[: int(length)]
        key, equals, value = record[len(length) + 1 :].partition(b"=")
        if not equals or not value.endswith(b"\n") or len(record) < int(length):
            raise ValueError("no record")
        records[key.decode()] = value[:-1].decode()
        data = data[len(record) :]
    if any(key.startswith("GNU.sparse") for key in records):
        raise ValueError("sparse")
    if not records.get("size", "0").isdecimal() or len(records.get("size", "")) > 19:
        raise ValueError("no size")
    return records
