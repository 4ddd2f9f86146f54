"""Image tokenisers: a picture in, a grid of codebook entries out, and back."""

from typing import TYPE_CHECKING, Protocol

import numpy as np

from megatron_aia.runtime.optional import import_optional

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageTokenizer(Protocol):
    """What the shard builder and the prompts need of an image tokeniser."""

    @property
    def name(self) -> str:
        """Kind and content hash; equal names make and read the same codes."""

    @property
    def fingerprint(self) -> str:
        """The name, and the sizes that decide how many codes a picture gets."""

    @property
    def codebook_size(self) -> int:
        """Every code is below it."""

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return (h, w) of the codes of a picture of ``width`` x ``height`` pixels.

        Raises:
            ValueError: the picture is too narrow or too small.
        """

    def encode(self, image: "Image") -> np.ndarray:
        """Return the codes of a picture of any size and mode, int64 ``[h, w]``.

        Raises:
            ValueError: the picture is too narrow or too small.
        """

    def decode(self, codes: np.ndarray) -> "Image":
        """Return the RGB picture of integer codes ``[h, w]``."""


def encode_picture(tokenizer: ImageTokenizer, pixels: np.ndarray) -> np.ndarray:
    """Return the codes of a decoded picture, those of the file it comes from.

    Args:
        tokenizer: makes the codes.
        pixels: uint8 ``[height, width, 3]``, turned as its camera meant it.

    Raises:
        ValueError: the picture is too narrow or too small.
    """
    return tokenizer.encode(import_optional("PIL.Image", "hf").fromarray(pixels))
