"""The files of one sample, as they stand in a shard.

``KEY.json``, and for each image ``KEY.NAME.npy`` (``KEY.0.NAME.npy``, ``KEY.1.NAME.npy``, ... for
several; the family gives the name), uint16 ``[h, w]`` or ``[h, w, depth]`` codes, or ``KEY.jpg`` or
the like, the picture file, or both. What the JSON says of them stands in ``index``.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_aia.building.convert_records import Record
from megatron_aia.shards.checksum import checksum, dump_with_checksum


@dataclass(frozen=True)
class RawImage:
    """A picture file that goes into the shard as it is."""

    suffix: str
    """File type without a dot, in small letters."""
    contents: bytes
    width: int
    height: int


def task_of_record(record: Record) -> str:
    """Return the task of a record as the JSON of a sample has it."""
    return record.task.name.lower()


def sample_files(
    record: Record,
    codes: Sequence[np.ndarray | None],
    images: Sequence[RawImage | None],
    codes_suffix: str,
) -> dict[str, bytes]:
    """Return the files of one sample: what follows the key and its dot, to contents.

    Args:
        record: words, and where from.
        codes: integers ``[h, w]``, or ``[h, w, depth]`` where codes are residual, of each image in
            the order of the tags; None for an image that has none.
        images: the picture files in the same order, None for those not to be stored; empty if none
            is.
        codes_suffix: file type of image codes.
    """
    pictures = images or [None] * len(codes)
    assert len(record.images) == len(codes) == len(pictures), f"{len(codes)} codes for {record}"
    prefixes = [""] if len(codes) == 1 else [f"{number}." for number in range(len(codes))]
    members: dict[str, bytes] = {}
    code_entries = [
        _add_codes(members, prefix + codes_suffix, grid)
        for prefix, grid in zip(prefixes, codes, strict=True)
    ]
    picture_entries = [
        _add_picture(members, prefix, image)
        for prefix, image in zip(prefixes, pictures, strict=True)
    ]
    description: dict[str, Any] = {
        "id": record.id,
        "task": task_of_record(record),
        "source": record.source,
        "license": record.license,
        "conversations": [{"from": turn.role, "value": turn.text} for turn in record.turns],
        "codes": code_entries if any(code_entries) else [],
    }
    if any(picture_entries):
        description["images"] = picture_entries
    members["json"] = dump_with_checksum(description)
    return members


def _add_codes(
    members: dict[str, bytes], member: str, grid: np.ndarray | None
) -> dict[str, Any] | None:
    """Add the file of an image's codes and return its entry in the JSON."""
    if grid is None:
        return None
    members[member] = _to_npy(grid)
    sizes = dict(zip(("height", "width", "depth"), grid.shape, strict=False))
    return {"member": member, **sizes, "crc32": checksum(members[member])}


def _add_picture(
    members: dict[str, bytes], prefix: str, image: RawImage | None
) -> dict[str, Any] | None:
    """Add a picture file and return its entry in the JSON."""
    if image is None:
        return None
    member = prefix + image.suffix
    members[member] = image.contents
    crc32 = checksum(image.contents)
    return {"member": member, "width": image.width, "height": image.height, "crc32": crc32}


def _to_npy(codes: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, codes.astype(np.uint16), allow_pickle=False)
    return buffer.getvalue()
