"""Checksums of a checkpoint's files: made by the ranks that wrote them, compared before a load."""

import re
import zlib
from collections.abc import Iterable
from pathlib import Path

FileSums = dict[str, tuple[int, str]]
"""Name in the checkpoint, with its folders, to size in bytes and CRC-32 in hexadecimal digits."""

_PIECE = 1 << 24
_OF_RANK = re.compile(r"__(\d+)_\d+\.distcp")
"""Files of tensors, by the rank that wrote them."""


def list_files(path: Path, without: Iterable[str] = ()) -> list[str]:
    """Return the names of all files of a checkpoint but some."""
    names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sorted(set(names) - set(without))


def sum_files(path: Path, names: Iterable[str]) -> FileSums:
    """Read files and return their sums.

    Raises:
        OSError: one cannot be read.
    """
    return {name: _sum(path / name) for name in names}


def sum_files_of_rank(path: Path, rank: int) -> FileSums:
    """Return the sums of the files of tensors that a rank wrote."""
    found = {name: _OF_RANK.fullmatch(name) for name in list_files(path)}
    return sum_files(path, (n for n, match in found.items() if match and int(match[1]) == rank))


def find_damage(path: Path, sums: FileSums, rank: int, size: int) -> str:
    """Compare a share of a checkpoint's files with their sums.

    Args:
        path: of the checkpoint.
        sums: of its files.
        rank: of ``size`` processes that read a share each.
        size: their number.

    Returns:
        What is wrong with the first damaged file; "" if nothing is.
    """
    by_size = sorted(sums, key=lambda name: (-sums[name][0], name))
    for name in by_size[rank::size]:
        length, digits = sums[name]
        try:
            found = _sum(path / name)
        except FileNotFoundError:
            return f"{path / name} is missing"
        except OSError as error:
            return f"{path / name} cannot be read: {error}"
        if found[0] != length:
            return f"{path / name} has {found[0]} bytes and was written with {length}"
        if found[1] != digits:
            return f"{path / name} is damaged: its CRC-32 is {found[1]} and was {digits}"
    return ""


def _sum(file: Path) -> tuple[int, str]:
    length, crc = 0, 0
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE):
            length, crc = length + len(piece), zlib.crc32(piece, crc)
    return length, f"{crc:08x}"
