"""The JSON of a sample, and what it means.

Only JSON is decoded here, plain ``.npy`` arrays in ``codes``, and three kinds of pictures in
``pictures``: a shard from elsewhere cannot run code.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

from megatron_aia.aia.roles import Task
from megatron_aia.shards.checksum import check_json
from megatron_aia.shards.problems import quote
from megatron_aia.shards.raw_sample import IMAGE_TAG, CorruptSampleError, Turn

ROLES = ("human", "gpt")
_MAX_SIDE = 1 << 16
"""Codes along a side of an image."""
_CHECKSUM = re.compile("[0-9a-f]{8}")


@dataclass(frozen=True)
class CodesEntry:
    """Image codes as the JSON of a sample announces them; sizes in tokens."""

    member: str
    height: int
    width: int
    depth: int = 0
    """Residual codes of a token; 0 where a token is one code, without an axis for it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return (self.height, self.width, *([self.depth] if self.depth else []))


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
    checksums: Mapping[str, str]
    """CRC-32 of every member that has one, by its suffix."""


def parse_description(data: bytes) -> Description:
    """Read the JSON member of a sample.

    Raises:
        CorruptSampleError: it is not JSON, or not the JSON of a sample. The text names neither
            shard nor sample; the caller does.
    """
    check_json(data)
    fields = _load_json(data)
    if not isinstance(fields, dict):
        raise CorruptSampleError("its json is not an object")
    turns = tuple(_parse_turn(turn) for turn in _list_of_objects(fields, "conversations"))
    if not turns:
        raise CorruptSampleError("it has no conversations")
    tags = sum(turn.text.count(IMAGE_TAG) for turn in turns)
    images = _parse_images(fields, tags)
    return Description(_parse_task(fields.get("task")), turns, images, _parse_checksums(fields))


def _load_json(data: bytes) -> object:
    try:
        # json.loads would guess the encoding of bytes, and let surrogates pass.
        return _DECODER.decode(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CorruptSampleError(f"its json does not parse ({error})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{quote(name)} is there twice")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _list_of_objects(fields: dict[str, Any], name: str) -> list[dict[str, Any]]:
    items = fields.get(name, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise CorruptSampleError(f"{name!r} is not a list of objects")
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
        raise CorruptSampleError(f"its text has {tags} {IMAGE_TAG} tags for {len(images)} images")
    return tuple(images)


def _entries_by_tag(fields: dict[str, Any], name: str, tags: int) -> list[dict[str, Any] | None]:
    """Return the entry of each tag, None for a tag that has none in this list."""
    items = fields.get(name)
    if items is None or items == []:
        return [None] * tags
    if not isinstance(items, list) or not all(isinstance(item, dict | None) for item in items):
        raise CorruptSampleError(f"{name!r} is not a list of objects")
    if len(items) != tags:
        raise CorruptSampleError(f"its text has {tags} {IMAGE_TAG} tags for {len(items)} {name}")
    return items


def _parse_task(name: object) -> Task:
    tasks = {task.name.lower(): task for task in Task}
    if not isinstance(name, str) or name not in tasks:
        raise CorruptSampleError(f"task {quote(name)} is none of {', '.join(tasks)}")
    return tasks[name]


def _parse_turn(turn: dict[str, Any]) -> Turn:
    role, text = turn.get("from"), turn.get("value")
    if role not in ROLES:
        raise CorruptSampleError(
            f"a turn is from {quote(role)}, which is none of {', '.join(ROLES)}"
        )
    if not isinstance(text, str):
        raise CorruptSampleError("the value of a turn is not text")
    _check_unicode(text)
    return Turn(role, text)


def _check_unicode(text: str) -> None:
    """JSON can spell halves of characters, which no tokeniser can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CorruptSampleError("its text holds half a surrogate pair") from None


def _parse_codes(entry: dict[str, Any]) -> CodesEntry:
    height, width = entry.get("height"), entry.get("width")
    if not isinstance(entry.get("member"), str) or not _is_side(height) or not _is_side(width):
        raise CorruptSampleError("an entry of 'codes' lacks member, height or width")
    depth = entry.get("depth", 0)
    if "depth" in entry and not _is_side(depth):
        raise CorruptSampleError(f"an entry of 'codes' has the depth {quote(depth)}")
    return CodesEntry(entry["member"], entry["height"], entry["width"], depth)


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value < _MAX_SIDE


def _parse_picture(entry: dict[str, Any]) -> PictureEntry:
    if not isinstance(entry.get("member"), str):
        raise CorruptSampleError("an entry of 'images' lacks member")
    return PictureEntry(entry["member"])


def _parse_checksums(fields: dict[str, Any]) -> dict[str, str]:
    """Return the checksums of all members, also of those that are not read."""
    lists = [items for name in ("codes", "images") if isinstance(items := fields.get(name), list)]
    checksums: dict[str, str] = {}
    for entry in chain(*lists):
        if isinstance(entry, dict) and "crc32" in entry:
            member, value = entry.get("member"), entry["crc32"]
            if not isinstance(member, str):
                raise CorruptSampleError("an entry with 'crc32' lacks member")
            if not isinstance(value, str) or not _CHECKSUM.fullmatch(value):
                raise CorruptSampleError(f"crc32 {quote(value)} is not eight hexadecimal digits")
            checksums[member] = value
    return checksums
