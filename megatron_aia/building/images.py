"""The images of a record: opened, checked, and made what goes into a shard."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_aia.building.convert_records import Record, RecordError
from megatron_aia.building.image_paths import find_image
from megatron_aia.building.options import BuildOptions
from megatron_aia.building.sample_files import RawImage
from megatron_aia.building.sources.base import is_failure_of_disk
from megatron_aia.runtime.optional import import_optional
from megatron_aia.shards.image_tokenizer import ImageTokenizer
from megatron_aia.shards.pictures import (
    check_header,
    check_pixels,
    decode_picture,
    upright_rgb,
)

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class _File:
    """A picture file, somewhere on a disk or in a record."""

    record: Record
    name: str
    """For errors."""
    place: Path | bytes

    @contextmanager
    def open(self) -> "Iterator[Image]":
        """Read the header only.

        Raises:
            RecordError: the file is not there, or no picture.
            OSError: the disk failed.
        """
        module = import_optional("PIL.Image", "demo")
        try:
            image = module.open(self.place if isinstance(self.place, Path) else self._stream())
        except FileNotFoundError:
            raise RecordError(self.record.id, "the image is not there", self.name) from None
        except module.UnidentifiedImageError:
            raise self.unreadable("no picture of a known format") from None
        except (OSError, ValueError, SyntaxError, module.DecompressionBombError) as error:
            raise self.unreadable(error) from None
        with image:
            yield image

    def unreadable(self, error: Exception | str) -> RecordError:
        """Return the error of a picture that is damaged; one of the disk is raised again."""
        if isinstance(error, Exception) and is_failure_of_disk(error):
            raise error
        return RecordError(self.record.id, "the image cannot be read", f"{self.name}: {error}")

    def contents(self) -> bytes:
        """Return the whole file."""
        return self.place.read_bytes() if isinstance(self.place, Path) else self.place

    def _stream(self) -> io.BytesIO:
        return io.BytesIO(self.contents())


def check_images(options: BuildOptions, record: Record) -> None:
    """Check the headers of a record's pictures.

    Raises:
        RecordError: one is not there, or cannot be used.
    """
    for number, is_drawn in enumerate(record.drawn):
        file = _find(options, record, number)
        if file is None:
            continue
        with file.open() as image:
            if options.stores_picture(is_drawn):
                try:
                    check_header(image)
                except ValueError as error:
                    reason = "the image is no picture to store"
                    raise RecordError(record.id, reason, f"{file.name}: {error}") from None
            else:
                try:
                    check_pixels(image)
                except ValueError as error:
                    raise file.unreadable(error) from None


def stored_image(
    options: BuildOptions, tokenizer: ImageTokenizer | None, record: Record, number: int
) -> tuple[np.ndarray | None, RawImage | None]:
    """Return the codes and the picture file of one image of a record, None for what it has not.

    Raises:
        RecordError: the picture is damaged or cannot be encoded.
    """
    file = _find(options, record, number)
    if file is None:
        codes = record.images[number]
        assert isinstance(codes, np.ndarray)
        return codes, None
    if tokenizer is None or options.stores_picture(record.drawn[number]):
        picture = _keep(file)
        try:
            decode_picture(picture.contents)
        except ValueError as error:
            reason = "the image cannot be read"
            raise RecordError(record.id, reason, f"{file.name} {error}") from error
        return None, picture
    image = _load(file)
    try:
        codes = tokenizer.encode(image)
    except ValueError as error:
        raise RecordError(record.id, "the image cannot be encoded", str(error)) from error
    return codes, _keep(file) if options.keep_images else None


def _find(options: BuildOptions, record: Record, number: int) -> _File | None:
    """Return the file of an image, or None for one that is codes already."""
    image = record.images[number]
    if isinstance(image, np.ndarray):
        return None
    if isinstance(image, bytes):
        return _File(record, f"image {number} of the record", image)
    return _File(record, str(options.image_root / image), _find_path(options, record, image))


def _find_path(options: BuildOptions, record: Record, name: str) -> Path:
    """Return where an image is.

    Raises:
        RecordError: nothing is there, or it may not be read.
        OSError: the disk failed.
    """
    place = str(options.image_root / name)
    try:
        return find_image(options.image_root, name)
    except (OSError, ValueError) as error:
        if is_failure_of_disk(error):
            raise
        if isinstance(error, FileNotFoundError):
            raise RecordError(record.id, "the image is not there", place) from None
        raise RecordError(record.id, "the image may not be read", f"{place}: {error}") from None


def _load(file: _File) -> "Image":
    """Read a whole picture, turned as its camera meant it.

    Raises:
        RecordError: it is not there, or damaged.
    """
    with file.open() as image:
        try:
            check_pixels(image)
            rgb = upright_rgb(image)
            rgb.load()
            return rgb.copy() if rgb is image else rgb
        except (OSError, ValueError, SyntaxError, MemoryError) as error:
            raise file.unreadable(error) from None


def _keep(file: _File) -> RawImage:
    with file.open() as image:
        suffix = {"JPEG": "jpg", "MPO": "jpg"}.get(
            image.format or "", (image.format or "bin").lower()
        )
        return RawImage(suffix, file.contents(), image.width, image.height)
