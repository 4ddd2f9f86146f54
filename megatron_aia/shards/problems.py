"""What can be wrong with a shard, and how it is said."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

from megatron_aia.shards.raw_sample import CorruptSampleError

ProblemKind = Literal[
    "cut",
    "header",
    "trailing data",
    "member name",
    "member type",
    "member size",
    "duplicate member",
    "duplicate key",
    "missing member",
    "json",
    "codes",
    "picture",
    "checksum",
    "dataset.json",
    "unreadable",
]
_REMEDY = "rebuild or delete the shard"
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Controls, line ends and halves of characters."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a shard, or with one sample of it."""

    shard: str
    """Path or URL."""
    offset: int
    """Byte of the shard where the damage, or the sample that has it, begins. Of a duplicate key,
    where the content of its first file does."""
    key: str
    """Key of the sample; empty where the damage belongs to none."""
    kind: ProblemKind
    text: str
    """What is wrong, in words; names the sample."""


_COPY_AGAIN = "copy the shard again, or rebuild it"
_REMEDIES: dict[ProblemKind, str] = {
    "cut": _COPY_AGAIN,
    "header": _COPY_AGAIN,
    "trailing data": _COPY_AGAIN,
    "checksum": _COPY_AGAIN,
    "unreadable": "check the disk and the permissions, then copy the shard again",
    "duplicate key": "give the two data sets folders of their own, or leave one sample out",
    "dataset.json": "copy what is missing, or build the folder again",
}


def remedy(kind: ProblemKind) -> str:
    """Return what to do about a problem."""
    return _REMEDIES.get(kind, "correct the sample's source, or leave it out, and rebuild")


Report = Callable[[Problem], None]
"""Is told every problem; where it returns, the search goes on behind the damage."""


def refuse(problem: Problem) -> NoReturn:
    """Stop at the first problem.

    Raises:
        ValueError: always.
    """
    raise corrupt_shard(problem.shard, problem.text)


def corrupt_shard(shard: str, what: str) -> ValueError:
    """Return the error of a shard that cannot be used: file, what is wrong, remedy."""
    return ValueError(f"{shard}: {what}; {_REMEDY}")


def corrupt_sample(shard: str, what: str) -> CorruptSampleError:
    """Return the error of one sample that cannot be used: file, sample and damage, remedy."""
    return CorruptSampleError(f"{shard}: {what}; {_REMEDY}")


def quote(value: object) -> str:
    """Return ``value`` for an error: on one line, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def printable(name: str) -> str:
    """Return a name from a shard as it is, or quoted if it would spoil the line."""
    return quote(name) if _UNPRINTABLE.search(name) or len(name) > 255 else name
