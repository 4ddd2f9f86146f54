"""Records in a JSON list, or in JSON lines in a file named ``*.jsonl``.

Files of tens of gigabytes are common. They are walked once for the byte where each record begins;
then every process reads the bytes of its own records.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_aia.building.sources.base import Format, Part, RawRecord, Source

_CHUNK = 1 << 24
_LONGEST_RECORD = 1 << 28
"""Characters; a bracket that is missing must not pull the whole file into memory."""
_SPACE = re.compile(r"[ \t\r\n]*")
_BETWEEN_ITEMS = re.compile(r"[ \t\r\n,]*")
_BYTE_ORDER_MARK = "\ufeff"
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class JsonRecords:
    """The ``Source`` of such a file."""

    path: Path
    offsets: np.ndarray
    """int64 ``[n + 1]``: bytes where the records begin, and where the last one has ended."""
    holds_pictures = False
    codebook_size = 0

    @property
    def files(self) -> tuple[Path]:
        """See ``Source``."""
        return (self.path,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> Part:
        """See ``Source``."""
        return _JsonPart(self.path, int(self.offsets[start]), int(self.offsets[stop]), start)


@dataclass(frozen=True)
class _JsonPart:
    path: Path
    start: int
    stop: int
    first: int
    """Number of the first record."""

    def read(self) -> Iterator[RawRecord]:
        """See ``Part``."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.stop - self.start)
        number = self.first
        try:
            for record in _parse_lines(data) if _is_lines(self.path) else _parse_items(data):
                if not isinstance(record, dict):
                    raise ValueError("it is no JSON object")
                yield record
                number += 1
        except (ValueError, RecursionError) as error:
            where = f"record number {number}, counted from 0"
            raise _unreadable(self.path, ValueError(f"{where}: {error}")) from None


def open_json(path: Path) -> Source:
    """Find the records of a file.

    Raises:
        ValueError: the file cannot be read, or is no list of JSON objects.
    """
    try:
        with path.open("rb") as file:
            offsets = _line_offsets(file) if _is_lines(path) else _item_offsets(file)
            return JsonRecords(path, np.fromiter(offsets, np.int64))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None


def _is_lines(path: Path) -> bool:
    return path.suffix == ".jsonl"


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"cannot read records from {path}: {error}")


def _parse_lines(data: bytes) -> Iterator[object]:
    return (json.loads(line) for line in data.split(b"\n") if line.strip())


def _parse_items(data: bytes) -> Iterator[object]:
    text, position = data.decode(), 0
    while position < len(text):
        item, position = _DECODER.raw_decode(text, position)
        position = _skip(_BETWEEN_ITEMS, text, position)
        yield item


def _line_offsets(file: BinaryIO) -> Iterator[int]:
    offset = 0
    for line in file:
        if line.strip():
            yield offset
        offset += len(line)
    yield offset


def _item_offsets(file: BinaryIO) -> Iterator[int]:
    window = _Window(file)
    if window.next_character() == _BYTE_ORDER_MARK:
        window.skip_character()
    if window.next_character() != "[":
        raise ValueError("it is no list of records; JSON lines must be named *.jsonl")
    window.skip_character()
    number = 0
    while window.next_character() != "]" or number:
        if window.next_character() != "{":
            raise ValueError(f"record number {number} is no JSON object")
        yield window.offset()
        window.skip_object(number)
        number += 1
        mark = window.next_character()
        if mark == "]":
            break
        if mark != ",":
            raise ValueError(f"no comma follows record number {number - 1}")
        window.skip_character()
    yield window.offset()
    window.skip_character()
    if window.next_character():
        raise ValueError("there is text behind the list")


class _Window:
    """A UTF-8 file of which only the text around the current position is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._position = 0
        self._counted = 0
        self._offset = 0
        """Of the character ``_counted``, in bytes of the file."""

    def offset(self) -> int:
        """Return the byte at which the current position stands."""
        self._offset += len(self._text[self._counted : self._position].encode())
        self._counted = self._position
        return self._offset

    def next_character(self) -> str:
        """Go to the next character that is no white space; return it, or nothing at the end."""
        while True:
            self._position = _skip(_SPACE, self._text, self._position)
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._fill():
                return ""

    def skip_character(self) -> None:
        """Go behind the current character."""
        self._position += 1

    def skip_object(self, number: int) -> None:
        """Go behind the object that begins here; ``number`` is for the error."""
        while True:
            try:
                _, self._position = _DECODER.raw_decode(self._text, self._position)
                return
            except json.JSONDecodeError as error:
                is_too_long = len(self._text) - self._position > _LONGEST_RECORD
                if is_too_long or not self._fill():
                    raise ValueError(f"record number {number}: {error.msg}") from None

    def _fill(self) -> bool:
        """Drop the text that was passed and read on; return False at the end of the file."""
        chunk = self._file.read(_CHUNK)
        self.offset()
        rest = self._text[self._position :]
        self._text = rest + self._decoder.decode(chunk, final=not chunk)
        self._position = self._counted = 0
        return bool(chunk)


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Return the position behind what ``pattern``, which may be empty, matches."""
    match = pattern.match(text, position)
    assert match is not None
    return match.end()


FORMAT = Format("json", lambda path: path.suffix in (".json", ".jsonl"), open_json)
