"""A sample as stored: words and images, before any model writes it as tokens."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megatron_aia.aia.roles import Task

IMAGE_TAG = "<image>"


class CorruptSampleError(ValueError):
    """The content of one sample cannot be used: its JSON, its codes or a picture of it.

    Every other sample can be read all the same. A shard that cannot be read, or that changed, is
    another matter and never this error.
    """


@dataclass(frozen=True)
class Turn:
    """One side's words. ``IMAGE_TAG`` in the text marks where an image stands."""

    role: str
    """``human`` or ``gpt``."""
    text: str


class Picture(Protocol):
    """An image stored as a picture file; nothing is read before ``decode``."""

    def decode(self) -> np.ndarray:
        """Return its pixels, uint8 ``[height, width, 3]``, red, green, blue.

        Raises:
            CorruptSampleError: the file is damaged or no picture that is allowed.
            ValueError: the shard changed.
        """

    def pixel_size(self) -> tuple[int, int]:
        """Return (width, height) of its pixels, from its header.

        Raises:
            CorruptSampleError: as ``decode``, but damage behind the header is not seen.
            ValueError: the shard changed.
        """


@dataclass(frozen=True)
class RawSample:
    """A sample as stored: words, and an image for each tag."""

    key: str
    """Unique name, ``<shard file>/<key in the shard>``; errors quote it."""
    task: Task
    turns: tuple[Turn, ...]
    images: tuple[np.ndarray | Picture, ...] = ()
    """In the order of their tags. Codes are int64 ``[height, width]``, in tokens, every value in
    ``[0, codebook_size)``."""

    @property
    def codes(self) -> tuple[np.ndarray, ...]:
        """The codes of every image, for a model that knows images by their codes only.

        Raises:
            ValueError: an image is stored as a picture.
        """
        codes = tuple(image for image in self.images if isinstance(image, np.ndarray))
        if len(codes) < len(self.images):
            raise ValueError(
                f"sample {self.key}: an image is stored as a picture, and this model reads codes; "
                "pass --image-tokenizer, or build the shards again with it and with "
                "--understanding-images codes"
            )
        return codes
