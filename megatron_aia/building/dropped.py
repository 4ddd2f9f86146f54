"""Records that are left out: which, and why."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_aia.building.convert_records import RecordError

DROPPED_FILE = "dropped.jsonl"
"""Beside ``dataset.json``: a line for each record that was left out."""


@dataclass(frozen=True)
class DroppedRecord:
    """A record that is left out."""

    number: int
    """Place in the input, from 0."""
    id: str
    reason: str
    """The same for all records that fail like this."""
    details: str

    @classmethod
    def of(cls, number: int, error: RecordError) -> "DroppedRecord":
        """Describe a record that cannot become a sample."""
        return cls(number, error.record_id, error.reason, error.details)

    def __str__(self) -> str:
        return f"record {self.id}: {self.reason}{self.details and ': '}{self.details}"


class Dropped:
    """Records that were left out, counted by reason."""

    def __init__(self, records: Iterable[DroppedRecord] = ()) -> None:
        self._examples: dict[str, DroppedRecord] = {}
        self.reasons: Counter[str] = Counter()
        for record in records:
            self.reasons[record.reason] += 1
            self._examples.setdefault(record.reason, record)

    def table(self) -> str:
        """Return a line for each reason: how many, and the first record with it."""
        lines = [f"{n:>8}  {self._examples[reason]}" for reason, n in self.reasons.most_common()]
        return "\n".join(
            [f"{self.reasons.total()} records do not fit; by reason, the first:", *lines]
        )

    def check(self, allowed: int) -> None:
        """Raise ValueError with the table if there are more than ``allowed``."""
        if self.reasons.total() > allowed:
            remedy = "correct them, or leave them out by --allow-dropped"
            raise ValueError(f"{self.table()}\n{remedy} {self.reasons.total()}")


def write_dropped(folder: Path, records: Iterable[DroppedRecord]) -> None:
    """Write the list; a folder from which nothing is missing has none."""
    lines = [json.dumps(asdict(record), ensure_ascii=True) + "\n" for record in records]
    if lines:
        (folder / DROPPED_FILE).write_text("".join(lines), encoding="utf-8")


def read_dropped(folder: Path) -> Dropped:
    """Read the list of a finished folder."""
    path = folder / DROPPED_FILE
    if not path.exists():
        return Dropped()
    with path.open(encoding="utf-8") as file:
        return Dropped([DroppedRecord(**json.loads(line)) for line in file])
