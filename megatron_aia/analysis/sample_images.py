"""The images of a sample as pictures for people."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_aia.runtime.optional import import_optional
from megatron_aia.shards.image_tokenizer import ImageTokenizer
from megatron_aia.shards.raw_sample import RawSample

if TYPE_CHECKING:
    from PIL.Image import Image

_CELL = 8
"""Pixels of a code in a grid of colours."""


def save_images(
    raw: RawSample, folder: Path, prefix: str, tokenizer: ImageTokenizer | None
) -> list[Path]:
    """Write every image of a sample as a PNG file.

    Args:
        raw: as stored.
        folder: made if it is not there.
        prefix: of the file names.
        tokenizer: decodes codes; without one, or with one of too small a codebook, they are shown
            as a grid of colours, one for each code.

    Returns:
        The files.

    Raises:
        ValueError: a picture is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, image in enumerate(raw.images):
        file = folder / f"{prefix}-image-{number}.png"
        if not isinstance(image, np.ndarray):
            picture = _picture(image.decode())
        elif tokenizer is not None and image.max() < tokenizer.codebook_size:
            picture = tokenizer.decode(image)
        else:
            picture = _picture(color_grid(image))
        picture.save(file)
        files.append(file)
    return files


def color_grid(codes: np.ndarray) -> np.ndarray:
    """Return squares of a colour for each code: equal codes, equal colours.

    Args:
        codes: integers ``[h, w]``.

    Returns:
        uint8 ``[8 * h, 8 * w, 3]``.
    """
    # Odd factors spread neighbouring codes over all three colours.
    factors = np.array([0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35], np.uint64)
    colors = (((codes[..., None].astype(np.uint64) + 1) * factors) >> 24).astype(np.uint8)
    return colors.repeat(_CELL, axis=0).repeat(_CELL, axis=1)


def _picture(pixels: np.ndarray) -> "Image":
    return import_optional("PIL.Image", "hf").fromarray(pixels)
