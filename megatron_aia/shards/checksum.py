"""Checksums that travel with a sample: of its JSON, and in the JSON of its other files.

Without them, a flipped bit in a picture, an array of codes or a caption still decodes. The JSON of
a sample begins with the CRC-32 of all that follows it there, and an entry of ``codes`` or
``images`` holds the CRC-32 of its file. Shards without them can be read all the same.
"""

import json
import zlib
from collections.abc import Mapping

from megatron_aia.shards.raw_sample import CorruptSampleError

_PREFIX = b'{"crc32": "'
_DIGITS = 8
_BODY = len(_PREFIX) + _DIGITS


def checksum(data: bytes) -> str:
    """Return the CRC-32 of ``data`` as eight hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def dump_with_checksum(fields: Mapping[str, object]) -> bytes:
    """Return ``fields``, which are not empty, as JSON with its own checksum."""
    body = b'", ' + json.dumps(fields, ensure_ascii=False).encode()[1:]
    return _PREFIX + checksum(body).encode() + body


def has_checksum(data: bytes) -> bool:
    """Tell whether the JSON of a sample begins with its checksum."""
    return data.startswith(_PREFIX)


def check_json(data: bytes) -> None:
    """Compare the JSON of a sample with its checksum, where it has one.

    Raises:
        CorruptSampleError: they differ.
    """
    if has_checksum(data) and data[len(_PREFIX) : _BODY] != checksum(data[_BODY:]).encode():
        raise CorruptSampleError("its json does not fit its checksum")


def fits(data: bytes, expected: str | None) -> bool:
    """Tell whether a file of a sample has the checksum in the JSON; None where there is none."""
    return expected is None or checksum(data) == expected
