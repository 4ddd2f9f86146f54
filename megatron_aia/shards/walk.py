"""What the index knows of each shard, found by one walk over it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_aia.shards.problems import Problem
from megatron_aia.shards.scan import SampleEntry, scan_shard
from megatron_aia.shards.shard import Shard
from megatron_aia.shards.table import SampleTable


@dataclass(frozen=True)
class ShardPart:
    """The samples of one shard."""

    table: SampleTable
    digest: bytes
    """Hash of its name, and of the texts and member places of its samples."""

    @classmethod
    def collect(cls, shard: Shard, samples: Iterator[SampleEntry]) -> "ShardPart":
        """Note every sample as it passes."""
        digest = hashlib.sha256(shard.name.encode())

        def digested() -> Iterator[SampleEntry]:
            for sample in samples:
                places = [(member.suffix, member.offset, member.size) for member in sample.members]
                digest.update(repr((sample.key, places)).encode())
                digest.update(sample.json)
                yield sample

        return cls(SampleTable.collect(digested()), digest.digest())


def walk_shard(shard: Shard) -> ShardPart:
    """Walk a shard, which must be whole.

    Raises:
        ValueError: it is damaged, see ``scan_shard``.
        OSError: it cannot be read.
    """
    return ShardPart.collect(shard, scan_shard(shard))


def combine(parts: Sequence[ShardPart]) -> tuple[SampleTable, str]:
    """Return the table of all shards, in order, and the fingerprint of the folder."""
    digest = hashlib.sha256(b"".join(part.digest for part in parts))
    return SampleTable.concatenate([part.table for part in parts]), digest.hexdigest()[:16]


def find_duplicates(shards: Sequence[Shard], table: SampleTable) -> Iterator[Problem]:
    """Yield the samples whose key is there before, in order."""
    for first, later in table.duplicate_keys():
        key = table.key(later).decode()
        shard, other = (shards[table.shard_numbers[number]] for number in (later, first))
        offset = min(offset for offset, _ in table.members(later)[0])
        text = f"key {key} is there before, in {other.name}"
        yield Problem(str(shard), offset, key, "duplicate key", text)
