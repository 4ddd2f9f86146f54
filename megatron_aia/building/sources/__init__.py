"""Inputs of ``tools/build_shards.py``: a file and a line in ``_FORMATS`` for each format."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from megatron_aia.building.convert_records import Record, RecordError, convert_record
from megatron_aia.building.sources import arrow_tables, json_records, tars
from megatron_aia.building.sources.base import Format, Part, RawRecord, Source
from megatron_aia.building.sources.field_names import to_record
from megatron_aia.models import families

__all__ = ["Part", "RawRecord", "Source", "convert_part", "known_formats", "open_source"]

_FORMATS = (
    json_records.FORMAT,
    arrow_tables.SAVED,
    arrow_tables.PARQUET,
    tars.FORMAT,
)
"""In the order in which ``auto`` asks them."""


def known_formats() -> list[Format]:
    """Return every format, those of the families first."""
    theirs = [module for family in families() for module in family.record_formats]
    return [*(import_module(module).FORMAT for module in theirs), *_FORMATS]


def open_source(path: Path, name: str = "auto") -> Source:
    """Open an input.

    Args:
        path: file or folder.
        name: of its format; ``auto`` looks for itself.

    Raises:
        ValueError: no such format, nothing there, or the records cannot be read.
    """
    by_name = {form.name: form for form in known_formats()}
    if name != "auto" and name not in by_name:
        raise ValueError(f"--format {name} is unknown; use auto or {', '.join(by_name)}")
    if not path.exists():
        raise ValueError(f"cannot read records from {path}: it does not exist")
    if name != "auto":
        return by_name[name].open(path)
    for form in by_name.values():
        if form.recognises(path):
            return form.open(path)
    raise ValueError(f"{path} is of no known format; name it by --format {', '.join(by_name)}")


def convert_part(part: Part, first: int) -> Iterator[Record | RecordError]:
    """Yield the records of a part in their stored form, or what is wrong with one.

    Args:
        part: of an input.
        first: number of its first record.

    Raises:
        ValueError: the input is damaged.
        OSError: the disk failed.
    """
    for number, row in enumerate(part.read(), first):
        try:
            yield row if isinstance(row, RecordError) else convert_record(number, to_record(row))
        except RecordError as error:
            yield error
