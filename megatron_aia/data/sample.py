"""The two forms of a sample: as read from a shard, and as tokens of one model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megatron_aia.aia.roles import Task

IMAGE_TAG = "<image>"


class DamagedSample(ValueError):
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
            DamagedSample: the file is damaged or no picture that is allowed.
            ValueError: the shard changed.
        """

    def pixel_size(self) -> tuple[int, int]:
        """Return (width, height) of its pixels, from its header.

        Raises:
            DamagedSample: as ``decode``, but damage behind the header is not seen.
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


@dataclass(frozen=True)
class ImageSource:
    """An image that the model looks at; nothing is read before ``load``."""

    stop: int
    """Position in the sample after the last token that stands for the image."""
    load: Callable[[], np.ndarray]
    """Read and prepare it: uint8 ``[3, size, size]``. A damaged picture raises DamagedSample."""


@dataclass(frozen=True)
class TokenizedSample:
    """A sample as one model reads it; four values a token.

    ``label_weights[t] > 0`` says that token t is a target, predicted from the tokens before it.
    """

    key: str
    task: Task
    tokens: np.ndarray
    """int64 ``[n]`` ids."""
    label_weights: np.ndarray
    """float32 ``[n]``; 0 for tokens without a loss; ``label_weights[0]`` is 0."""
    roles: np.ndarray
    """uint8 ``[n]``, codes of ``aia.roles``; all 0 for an inactive sample."""
    images: tuple[ImageSource, ...] = ()
    """Images to look at that are no codes among the tokens, in the order of their tokens."""

    def __len__(self) -> int:
        return len(self.tokens)


class PromptBuilder(Protocol):
    """A model's way to write a sample. Pure: same in, same out."""

    def __call__(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        """Write ``sample`` as tokens; without its prompt if ``drop_prompt``.

        Raises:
            ValueError: it cannot be written; the text names it.
        """

    def outline(self, sample: RawSample) -> TokenizedSample:
        """Write ``sample`` with its prompt, but decode no picture: rows are planned with this.

        Everything is as in the sample itself, but any code may stand for one that would have to be
        made of a picture.

        Raises:
            ValueError: it cannot be written; the text names it.
        """
