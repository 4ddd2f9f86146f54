"""Bytes of a shard, and what they mean.

Only JSON and plain ``.npy`` arrays are decoded here, and three kinds of pictures in ``pictures``: a
shard from elsewhere cannot run code.
"""

import io
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.data.sample import IMAGE_TAG, DamagedSample, Turn

ROLES = ("human", "gpt")
_OPEN_SHARDS = 256


def damaged(shard: Path, what: str) -> ValueError:
    """Return the error of a shard that cannot be used: file, what is wrong, remedy."""
    return ValueError(_with_remedy(shard, what))


def damaged_sample(shard: Path, what: str) -> DamagedSample:
    """Return the error of one sample that cannot be used: file, sample and damage, remedy."""
    return DamagedSample(_with_remedy(shard, what))


def _with_remedy(shard: Path, what: str) -> str:
    return f"{shard}: {what}; rebuild or delete the shard"


@dataclass(frozen=True)
class Shard:
    """A tar file as it was when it was indexed."""

    path: Path
    size: int
    """Bytes."""
    modified: int
    """Modification time in nanoseconds."""

    @classmethod
    def at(cls, path: Path) -> "Shard":
        """Describe the file at ``path``."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes.

        Raises:
            ValueError: the file is not the one that was indexed.
            OSError: the file cannot be read, or not all of it.
        """
        descriptor = _open(self)
        status = os.fstat(descriptor.number)
        if (status.st_size, status.st_mtime_ns) != (self.size, self.modified):
            raise ValueError(f"{self.path}: changed since it was indexed; start the run again")
        # pread moves no file position, so a forked process may go on with the same descriptor.
        data = os.pread(descriptor.number, size, offset)
        if len(data) < size:
            raise OSError(f"{self.path}: {len(data)} of {size} bytes could be read at {offset}")
        return data


class _Descriptor:
    """A file descriptor that closes once neither the cache nor a reading thread holds it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=_OPEN_SHARDS)
def _open(shard: Shard) -> _Descriptor:
    return _Descriptor(shard.path)


@dataclass(frozen=True)
class CodesEntry:
    """Image codes as the JSON of a sample announces them; sizes in tokens."""

    member: str
    height: int
    width: int


@dataclass(frozen=True)
class PictureEntry:
    """A picture as the JSON of a sample announces it."""

    member: str


@dataclass(frozen=True)
class Description:
    """What the JSON member of a sample says."""

    task: Task
    turns: tuple[Turn, ...]
    images: tuple[CodesEntry | PictureEntry, ...]
    """What stands for each image tag, in order."""


def parse_description(data: bytes) -> Description:
    """Read the JSON member of a sample.

    Raises:
        DamagedSample: it is not JSON, or not the JSON of a sample. The text names neither shard
            nor sample; the caller does.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedSample(f"its json does not parse ({error})") from None
    if not isinstance(fields, dict):
        raise DamagedSample("its json is not an object")
    turns = tuple(_parse_turn(turn) for turn in _list_of_objects(fields, "conversations"))
    if not turns:
        raise DamagedSample("it has no conversations")
    tags = sum(turn.text.count(IMAGE_TAG) for turn in turns)
    return Description(_parse_task(fields.get("task")), turns, _parse_images(fields, tags))


def _list_of_objects(fields: dict[str, Any], name: str) -> list[dict[str, Any]]:
    items = fields.get(name, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DamagedSample(f"{name!r} is not a list of objects")
    return items


def _parse_images(fields: dict[str, Any], tags: int) -> tuple[CodesEntry | PictureEntry, ...]:
    """Return what stands for each tag: its codes, or its picture where it has no codes."""
    codes = _entries_by_tag(fields, "codes", tags)
    # Pictures beside complete codes were kept for people to look at; nobody reads them.
    pictures = _entries_by_tag(fields, "images", tags) if None in codes else codes
    images: list[CodesEntry | PictureEntry] = []
    for code_entry, picture_entry in zip(codes, pictures, strict=True):
        if code_entry is not None:
            images.append(_parse_codes(code_entry))
        elif picture_entry is not None:
            images.append(_parse_picture(picture_entry))
    if len(images) < tags:
        raise DamagedSample(f"its text has {tags} {IMAGE_TAG} tags for {len(images)} images")
    return tuple(images)


def _entries_by_tag(fields: dict[str, Any], name: str, tags: int) -> list[dict[str, Any] | None]:
    """Return the entry of each tag, None for a tag that has none in this list."""
    items = fields.get(name) or [None] * tags
    if not isinstance(items, list) or not all(isinstance(item, dict | None) for item in items):
        raise DamagedSample(f"{name!r} is not a list of objects")
    if len(items) != tags:
        raise DamagedSample(f"its text has {tags} {IMAGE_TAG} tags for {len(items)} {name}")
    return items


def _parse_task(name: object) -> Task:
    tasks = {task.name.lower(): task for task in Task}
    if not isinstance(name, str) or name not in tasks:
        raise DamagedSample(f"task {name!r} is none of {', '.join(tasks)}")
    return tasks[name]


def _parse_turn(turn: dict[str, Any]) -> Turn:
    role, text = turn.get("from"), turn.get("value")
    if role not in ROLES:
        raise DamagedSample(f"a turn is from {role!r}, which is none of {', '.join(ROLES)}")
    if not isinstance(text, str):
        raise DamagedSample("the value of a turn is not text")
    return Turn(role, text)


def _parse_codes(entry: dict[str, Any]) -> CodesEntry:
    member, height, width = (entry.get(name) for name in ("member", "height", "width"))
    if not isinstance(member, str) or not isinstance(height, int) or not isinstance(width, int):
        raise DamagedSample("an entry of 'codes' lacks member, height or width")
    return CodesEntry(member, height, width)


def _parse_picture(entry: dict[str, Any]) -> PictureEntry:
    if not isinstance(entry.get("member"), str):
        raise DamagedSample("an entry of 'images' lacks member")
    return PictureEntry(entry["member"])


def decode_codes(data: bytes, entry: CodesEntry, codebook_size: int) -> np.ndarray:
    """Decode the ``.npy`` member of one image.

    Returns:
        int64 ``[height, width]``, every value in ``[0, codebook_size)``.

    Raises:
        DamagedSample: anything else; the text names neither shard nor sample, the caller does.
    """
    try:
        codes = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception:  # a damaged header makes numpy raise much else than ValueError
        raise DamagedSample(f"{entry.member} is no plain npy array") from None
    if codes.dtype != np.uint16 or codes.shape != (entry.height, entry.width) or not codes.size:
        raise DamagedSample(
            f"{entry.member} is {codes.dtype} {list(codes.shape)}, "
            f"not uint16 [{entry.height}, {entry.width}]"
        )
    if codes.max() >= codebook_size:
        raise DamagedSample(
            f"{entry.member} holds code {codes.max()}, outside a codebook of {codebook_size}"
        )
    return codes.astype(np.int64)
