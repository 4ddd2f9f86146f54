"""What a format gives the shard builder: numbered records, in parts that any process can read."""

import errno
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from megatron_aia.building.convert_records import RecordError

RawRecord = dict[str, Any]
"""A record with the field names of its data set; ``sources.field_names`` knows these names. An
image is a path, the bytes of a picture file, or an integer array of codes."""


_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


def is_failure_of_disk(error: Exception) -> bool:
    """Tell whether a file could not be read although it is there.

    Then nothing is known of the record, and it must not be dropped.
    """
    number = error.errno if isinstance(error, OSError) else None
    return number is not None and number not in _ABSENT


class Part(Protocol):
    """A range of records; it can be pickled, and holds no more of the input than it must."""

    def read(self) -> Iterator[RawRecord | RecordError]:
        """Yield the records in order, and an error in the place of one that cannot be read.

        Raises:
            ValueError: the input is damaged; the text names the file.
            OSError: the disk failed.
        """


class Source(Protocol):
    """All records of an input, in an order that never changes."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that the records stand in; pictures that they name by path not included."""

    @property
    def holds_pictures(self) -> bool:
        """Whether the images stand in ``files``: then reading a record reads its images."""

    @property
    def codebook_size(self) -> int:
        """Of images that are codes already; 0 where all are pictures."""

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> Part:
        """Return the records of numbers ``[start, stop)``, counted from 0."""


@dataclass(frozen=True)
class Format:
    """A kind of input."""

    name: str
    """Value of ``--format``."""
    recognises: Callable[[Path], bool]
    """Tell from names and a look at the first bytes whether a path holds this kind of input."""
    open: Callable[[Path], Source]
    """Count the records; raises ValueError where they cannot be read."""


@dataclass(frozen=True)
class Slice:
    """Records ``[start, stop)`` of one file, counted in that file."""

    file: Path
    start: int
    stop: int


class FileCounts:
    """Numbers records over files of which each holds several.

    Args:
        files: in the order of the records.
        counts: records of each file.
    """

    def __init__(self, files: Sequence[Path], counts: Sequence[int]) -> None:
        self._files = files
        self._starts = [0, *accumulate(counts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def slices(self, start: int, stop: int) -> tuple[Slice, ...]:
        """Return where the records ``[start, stop)`` stand."""
        slices = []
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            first, end = self._starts[number], min(stop, self._starts[number + 1])
            if start < end:
                slices.append(Slice(self._files[number], start - first, end - first))
            start, number = end, number + 1
        return tuple(slices)
