"""Image codes: plain ``.npy`` arrays, and nothing that could run code."""

import io
import math
from functools import lru_cache

import numpy as np

from megatron_aia.shards.checksum import fits
from megatron_aia.shards.problems import quote
from megatron_aia.shards.raw_sample import CorruptSampleError
from megatron_aia.shards.reader import CodesEntry

_Header = tuple[tuple[int, ...], bool, np.dtype, int]
"""Shape, whether columns come first, type, and where the values begin."""
_USUAL = b"\x93NUMPY\x01\x00\x76\x00"
_USUAL_SIZE = 128
"""What numpy writes of any small array. Parsing its header takes longer than all the rest."""


def decode_codes(
    data: bytes, entry: CodesEntry, codebook_size: int, checksum: str | None = None
) -> np.ndarray:
    """Decode the ``.npy`` member of one image.

    Args:
        data: the file.
        entry: its size.
        codebook_size: every code is below this.
        checksum: CRC-32 of ``data``; None where it is not known.

    Returns:
        int64 ``[height, width]``, or ``[height, width, depth]`` of residual codes; every value in
        ``[0, codebook_size)``.

    Raises:
        CorruptSampleError: anything else; the text names neither shard nor sample, the caller does.
    """
    if not fits(data, checksum):
        raise CorruptSampleError(f"{entry.member} does not fit its checksum")
    shape, is_fortran, dtype, start = _read_npy_header(data, entry.member)
    expected = entry.shape
    # Compared before anything is allocated: a header may announce any size.
    if dtype != np.uint16 or shape != expected:
        raise CorruptSampleError(
            f"{entry.member} is {dtype} {quote(list(shape))}, not uint16 {list(expected)}"
        )
    if len(data) - start != math.prod(expected) * dtype.itemsize:
        raise CorruptSampleError(
            f"{entry.member} is no plain npy array: {len(data)} bytes do not fit"
        )
    values = np.frombuffer(data, dtype, offset=start)
    codes = values.reshape(expected[::-1]).T if is_fortran else values.reshape(expected)
    if codes.max() >= codebook_size:
        raise CorruptSampleError(
            f"{entry.member} holds code {codes.max()}, outside a codebook of {codebook_size}"
        )
    return codes.astype(np.int64)


def _read_npy_header(data: bytes, member: str) -> _Header:
    try:
        return _parse_usual(data[:_USUAL_SIZE]) if data.startswith(_USUAL) else _parse(data)
    except Exception:  # a damaged header makes numpy raise much else than ValueError
        raise CorruptSampleError(f"{member} is no plain npy array") from None


def _parse(data: bytes) -> _Header:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    return *read(file), file.tell()


_parse_usual = lru_cache(maxsize=4096)(_parse)
