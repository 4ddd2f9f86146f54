"""Published numbers, as data files with their sources. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from megatron_aia.evaluation.result import COLUMNS

_FOLDER = Path(__file__).parent / "references"


@dataclass(frozen=True)
class Reference:
    """A row of a published table."""

    name: str
    source: str
    """Paper and table, or repository and commit."""
    conditions: str
    """How the numbers were made, as far as is said."""
    values: Mapping[str, float]
    """By column."""


def reference_names() -> list[str]:
    """Return the tables that there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def read_references(name: str) -> list[Reference]:
    """Return the rows of a table.

    Raises:
        ValueError: no such table.
    """
    path = _FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(reference_names())
        raise ValueError(f"--reference {name} is unknown; use one of {known}")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    columns = document["columns"]
    assert set(columns) <= set(COLUMNS), columns
    rows = []
    for row in document["rows"]:
        values = dict(zip(columns, row["values"], strict=True))
        rows.append(
            Reference(
                row["name"],
                row.get("source", document["source"]),
                "; ".join(filter(None, (document["conditions"], row.get("more")))),
                {column: float(value) for column, value in values.items() if value is not None},
            )
        )
    return rows
