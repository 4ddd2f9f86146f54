"""Picture files: decoded when somebody asks, in three formats only, and cut to squares."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from megatron_aia.runtime.optional import import_optional
from megatron_aia.shards.checksum import fits
from megatron_aia.shards.problems import corrupt_sample
from megatron_aia.shards.raw_sample import CorruptSampleError
from megatron_aia.shards.shard import Shard

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP")
"""PIL's other decoders are less used, and a shard may come from elsewhere."""
_MANY_PICTURES = "MPO"
"""PIL's name of a JPEG with more pictures behind the first, as some phones write."""
MAX_PIXELS = 64_000_000
"""A small file may announce a picture that fills the memory."""
MAX_ASPECT = 100
"""Longer side by shorter: scaled to a usual height, a strip would fill the memory too."""
_DEEP_MODES = ("I", "F")
"""Beginnings of PIL's modes of more than 8 bits a channel, which its conversion cuts off at 255."""
_MAX_SCANS = 200
"""Of a progressive JPEG: each takes the time of a whole picture, and may be a few bytes long."""
_START_OF_SCAN = b"\xff\xda"
_START_OF_JPEG = b"\xff\xd8"
_ORIENTATION = 0x0112
"""EXIF's tag for how the camera was held."""
_TURNED = (5, 6, 7, 8)
"""Its values for a picture whose sides change places."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class ShardPicture:
    """The ``Picture`` that stands in a shard."""

    shard: Shard
    offset: int
    size: int
    key: str
    """Of the sample."""
    member: str
    checksum: str | None = None
    """CRC-32 of the file, where its sample tells it."""

    def decode(self) -> np.ndarray:
        """See ``Picture``."""
        return self._read(decode_picture)

    def pixel_size(self) -> tuple[int, int]:
        """See ``Picture``."""
        return self._read(read_pixel_size)

    def _read(self, look: Callable[[bytes], _T]) -> _T:
        data = self.shard.read(self.offset, self.size)
        try:
            if not fits(data, self.checksum):
                raise CorruptSampleError("does not fit its checksum")
            return look(data)
        except CorruptSampleError as error:
            self.shard.check_unchanged()
            text = f"sample {self.key}: {self.member} {error}"
            raise corrupt_sample(str(self.shard), text) from None


def decode_picture(data: bytes) -> np.ndarray:
    """Decode a JPEG, PNG or WebP file, turned as its camera meant it.

    Returns:
        uint8 ``[height, width, 3]``, red, green, blue; transparency is left out.

    Raises:
        CorruptSampleError: the file is damaged, of another format or too large.
    """
    return _open(data, lambda image: np.array(upright_rgb(image)))


def read_pixel_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of the picture that ``decode_picture`` would decode.

    Raises:
        CorruptSampleError: the header is damaged, of another format, or of too large a picture.
    """
    return _open(data, _upright_size)


def upright_rgb(image: "Image") -> "Image":
    """Return an opened picture in red, green and blue, turned as its camera meant it.

    The picture itself is turned: a large one is not held twice.
    """
    import_optional("PIL.ImageOps", "hf").exif_transpose(image, in_place=True)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright_size(image: "Image") -> tuple[int, int]:
    is_turned = image.getexif().get(_ORIENTATION) in _TURNED
    return (image.height, image.width) if is_turned else (image.width, image.height)


def _open(data: bytes, look: "Callable[[Image], _T]") -> _T:
    image_module = import_optional("PIL.Image", "hf")
    if data.count(_START_OF_SCAN) > _MAX_SCANS and data.startswith(_START_OF_JPEG):
        raise CorruptSampleError(f"is a JPEG of more than {_MAX_SCANS} scans")
    try:
        with image_module.open(io.BytesIO(data), formats=FORMATS) as image:
            check_header(image)
            return look(image)
    except image_module.UnidentifiedImageError:
        raise CorruptSampleError(f"is none of {', '.join(FORMATS)}") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes PIL raise much else than OSError
        raise CorruptSampleError(f"is no picture that can be read ({error})") from None


def check_header(image: "Image") -> None:
    """Check an opened picture before its pixels are decoded.

    Raises:
        CorruptSampleError: its format is not allowed, or as ``check_pixels``.
    """
    if image.format not in (*FORMATS, _MANY_PICTURES):
        raise CorruptSampleError(f"its format {image.format} is none of {', '.join(FORMATS)}")
    check_pixels(image)


def check_pixels(image: "Image") -> None:
    """Check the size and the depth of an opened picture of any format.

    Raises:
        CorruptSampleError: too many pixels, a strip, or more than 8 bits a channel.
    """
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise CorruptSampleError(f"{width} x {height} pixels are over {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise CorruptSampleError(
            f"{width} x {height} pixels: one side is over {MAX_ASPECT} times the other"
        )
    if image.mode.startswith(_DEEP_MODES):
        raise CorruptSampleError(
            f"it has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits"
        )


def crop_to_square(image: "Image", side: int) -> "Image":
    """Scale a picture until its short side fits, and cut out the middle.

    It is halved as long as that goes, by means of 2 x 2 pixels, before the bicubic step, as in the
    published training with AIA.

    Args:
        image: of any size.
        side: of the result, in pixels.
    """
    resampling = import_optional("PIL.Image", "hf").Resampling
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), resampling.BOX)
    scale = side / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    image = image.resize(size, resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
