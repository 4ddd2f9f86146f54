"""Where every sample of a data folder stands, in a few flat arrays."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from megatron_aia.shards.reader import PictureEntry
from megatron_aia.shards.scan import MAX_IMAGE_BYTES, MAX_JSON_BYTES, SampleEntry

_TYPES = {
    "tasks": np.uint8,
    "shard_numbers": np.int32,
    "member_starts": np.int64,
    "member_offsets": np.int64,
    "member_sizes": np.int64,
    "member_is_picture": np.bool_,
    "key_starts": np.int64,
    "keys": np.uint8,
}


@dataclass(frozen=True)
class SampleTable:
    """Where every sample stands: ``n`` samples, ``m`` members, ``k`` bytes of keys."""

    tasks: np.ndarray
    """uint8 ``[n]``."""
    shard_numbers: np.ndarray
    """int32 ``[n]``."""
    member_starts: np.ndarray
    """int64 ``[n + 1]``: sample i has the members from ``[i]`` up to ``[i + 1]``, JSON first."""
    member_offsets: np.ndarray
    """int64 ``[m]``: byte of the shard where the member's content begins."""
    member_sizes: np.ndarray
    """int64 ``[m]``: bytes."""
    member_is_picture: np.ndarray
    """bool ``[m]``: pictures are read when they are decoded, all else with the sample."""
    key_starts: np.ndarray
    """int64 ``[n + 1]``: the key of sample i is ``keys[key_starts[i]:key_starts[i + 1]]``."""
    keys: np.ndarray
    """uint8 ``[k]``: UTF-8."""

    @classmethod
    def collect(cls, samples: Iterable[SampleEntry]) -> "SampleTable":
        """Build the table of one shard, which gets the number 0."""
        tasks, keys, key_ends = [], bytearray(), [0]
        offsets, sizes, is_picture, member_ends = [], [], [], [0]
        for sample in samples:
            tasks.append(int(sample.description.task))
            keys += sample.key.encode()
            key_ends.append(len(keys))
            offsets += [member.offset for member in sample.members]
            sizes += [member.size for member in sample.members]
            images = sample.description.images
            is_picture += [False, *(isinstance(image, PictureEntry) for image in images)]
            member_ends.append(len(offsets))
        columns = {
            "tasks": tasks,
            "shard_numbers": [0] * len(tasks),
            "member_starts": member_ends,
            "member_offsets": offsets,
            "member_sizes": sizes,
            "member_is_picture": is_picture,
            "key_starts": key_ends,
            "keys": list(keys),
        }
        return cls(**{name: np.array(values, _TYPES[name]) for name, values in columns.items()})

    @classmethod
    def concatenate(cls, tables: Sequence["SampleTable"]) -> "SampleTable":
        """Join the tables of shards 0, 1, ..., of which there is at least one."""
        columns = {
            column.name: np.concatenate([getattr(table, column.name) for table in tables])
            for column in fields(cls)
        }
        lengths = [len(table.tasks) for table in tables]
        columns["shard_numbers"] = np.repeat(np.arange(len(tables), dtype=np.int32), lengths)
        for name in ("member_starts", "key_starts"):
            columns[name] = _join_starts([getattr(table, name) for table in tables])
        return cls(**columns)

    def __len__(self) -> int:
        return len(self.tasks)

    def fits(self, shard_sizes: Sequence[int]) -> bool:
        """Tell whether this can be the table of shards of these sizes in bytes.

        A table comes from a file beside the shards, which may be anybody's.
        """
        n, m = len(self.tasks), len(self.member_offsets)
        shapes = {"member_starts": n + 1, "key_starts": n + 1, "keys": len(self.keys)}
        shapes |= {"tasks": n, "shard_numbers": n}
        for column in fields(self):
            array = getattr(self, column.name)
            if array.dtype != _TYPES[column.name] or array.shape != (shapes.get(column.name, m),):
                return False
        ends = ((self.member_starts, m), (self.key_starts, len(self.keys)))
        if any(starts[0] != 0 or starts[-1] != end for starts, end in ends):
            return False
        members = np.diff(self.member_starts)
        if n and (members.min() < 1 or np.diff(self.key_starts).min() < 1):
            return False
        if n and not 0 <= self.shard_numbers.min() <= self.shard_numbers.max() < len(shard_sizes):
            return False
        room = np.repeat(np.array(shard_sizes, np.int64)[self.shard_numbers], members)
        sizes, offsets = self.member_sizes, self.member_offsets
        if not ((sizes >= 0) & (offsets >= 0) & (offsets <= room - sizes)).all():
            return False
        of_samples = np.add.reduceat(sizes, self.member_starts[:-1]) if n else sizes
        return bool((of_samples <= MAX_JSON_BYTES + MAX_IMAGE_BYTES).all())

    def key(self, number: int) -> bytes:
        """Return the key of a sample, in UTF-8."""
        start, stop = self.key_starts[number : number + 2]
        return self.keys[start:stop].tobytes()

    def members(self, number: int) -> tuple[list[tuple[int, int]], list[bool]]:
        """Return (offset, size) of every member of a sample, and whether it is a picture."""
        span = slice(*self.member_starts[number : number + 2])
        offsets, sizes = self.member_offsets[span].tolist(), self.member_sizes[span].tolist()
        return list(zip(offsets, sizes, strict=True)), self.member_is_picture[span].tolist()

    def duplicate_keys(self) -> list[tuple[int, int]]:
        """Return (first sample, later sample) of every key that is there before, in order."""
        hashes = np.fromiter(map(hash, self._iterate_keys()), np.int64, len(self))
        order = np.argsort(hashes, kind="stable")
        is_equal = np.diff(hashes[order]) == 0
        suspects = np.unique(np.concatenate([order[:-1][is_equal], order[1:][is_equal]]))
        first: dict[bytes, int] = {}
        pairs = ((first.setdefault(self.key(i), i), i) for i in suspects.tolist())
        return [(earlier, later) for earlier, later in pairs if earlier < later]

    def count_tasks(self) -> Counter[int]:
        """Return the number of samples of each task."""
        return Counter(self.tasks.tolist())

    def _iterate_keys(self) -> Iterator[bytes]:
        keys, starts = self.keys.tobytes(), self.key_starts.tolist()
        return (keys[start:stop] for start, stop in pairwise(starts))


def _join_starts(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Join arrays that begin with 0 and end with a total, each counting on from the last."""
    steps = np.concatenate([np.diff(part) for part in parts])
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(steps, dtype=np.int64)])
