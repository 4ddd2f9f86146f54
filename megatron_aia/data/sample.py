"""A sample as tokens of one model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.shards.raw_sample import RawSample


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
