"""Parquet files and folders of ``datasets.Dataset.save_to_disk``; pictures stand in the rows.

Both are read a few rows at a time through pyarrow, which decodes no picture. Nothing is looked up
on a hub.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_aia.building.sources.base import FileCounts, Format, Part, RawRecord, Slice, Source
from megatron_aia.runtime.optional import import_optional

if TYPE_CHECKING:
    import datasets
    import pyarrow

_EXTRA = "formats"
_ROWS = 16
"""Rows in memory at a time: each may hold pictures of many megabytes."""


@dataclass(frozen=True)
class ParquetRecords:
    """The ``Source`` of Parquet files."""

    files: tuple[Path, ...]
    counts: FileCounts
    holds_pictures: bool
    codebook_size = 0

    def __len__(self) -> int:
        return len(self.counts)

    def part(self, start: int, stop: int) -> Part:
        """See ``Source``."""
        return _ParquetPart(self.counts.slices(start, stop))


@dataclass(frozen=True)
class _ParquetPart:
    slices: tuple[Slice, ...]

    def read(self) -> Iterator[RawRecord]:
        """See ``Part``."""
        parquet = import_optional("pyarrow.parquet", _EXTRA)
        for part in self.slices:
            try:
                with parquet.ParquetFile(part.file) as file:
                    yield from _rows_of_groups(file, part.start, part.stop)
            except (OSError, ValueError) as error:
                raise ValueError(f"cannot read records from {part.file}: {error}") from None


def _rows_of_groups(file: Any, start: int, stop: int) -> Iterator[RawRecord]:
    """Yield the rows ``[start, stop)`` of an open file; other row groups are not read."""
    first = 0
    for group in range(file.num_row_groups):
        end = first + file.metadata.row_group(group).num_rows
        if first < stop and start < end:
            for batch in file.iter_batches(_ROWS, row_groups=[group]):
                low, high = max(start - first, 0), min(stop - first, batch.num_rows)
                if low < high:
                    yield from batch.slice(low, high - low).to_pylist()
                first += batch.num_rows
        first = end


def open_parquet(path: Path) -> Source:
    """Count the rows of a Parquet file, or of those in a folder.

    Raises:
        ValueError: there is none, one is damaged, or pyarrow is not installed.
    """
    parquet = import_optional("pyarrow.parquet", _EXTRA)
    files = tuple(sorted(path.glob("**/*.parquet"))) if path.is_dir() else (path,)
    counts, holds_pictures = [], False
    for file in files:
        try:
            counts.append(parquet.read_metadata(file).num_rows)
            holds_pictures |= _has_bytes(parquet.read_schema(file))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read records from {file}: {error}") from None
    return ParquetRecords(files, FileCounts(files, counts), holds_pictures)


@dataclass(frozen=True)
class SavedDataset:
    """The ``Source`` of a folder of ``save_to_disk``."""

    folder: Path
    files: tuple[Path, ...]
    num_records: int
    holds_pictures: bool
    codebook_size = 0

    def __len__(self) -> int:
        return self.num_records

    def part(self, start: int, stop: int) -> Part:
        """See ``Source``."""
        return _SavedPart(self.folder, start, stop)


@dataclass(frozen=True)
class _SavedPart:
    folder: Path
    start: int
    stop: int

    def read(self) -> Iterator[RawRecord]:
        """See ``Part``."""
        # In this format rows come as stored: pictures are not decoded.
        dataset = _load(self.folder).with_format("arrow")
        for first in range(self.start, self.stop, _ROWS):
            table: Any = dataset[first : min(first + _ROWS, self.stop)]
            yield from table.to_pylist()


def open_saved(path: Path) -> Source:
    """Open a folder of ``save_to_disk``; its files are mapped, not read.

    Raises:
        ValueError: it cannot be loaded, holds several splits, or datasets is not installed.
    """
    splits = path / "dataset_dict.json"
    if splits.exists():
        names = ", ".join(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
        raise ValueError(f"{path} has several splits; name one of its folders: {names}")
    dataset = _load(path)
    files = tuple(sorted(file for file in path.rglob("*") if file.is_file()))
    return SavedDataset(path, files, len(dataset), _has_bytes(dataset.features.arrow_schema))


def _load(folder: Path) -> "datasets.Dataset":
    library = import_optional("datasets", _EXTRA)
    try:
        return library.load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"cannot read records from {folder}: {error}") from None


def _has_bytes(schema: "pyarrow.Schema") -> bool:
    """Tell whether a column, or a field of one, holds bytes."""
    return any("binary" in str(field.type) for field in schema)


def _is_parquet(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob("**/*.parquet"))
    return path.suffix == ".parquet"


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


PARQUET = Format("parquet", _is_parquet, open_parquet)
SAVED = Format("saved_dataset", _is_saved, open_saved)
