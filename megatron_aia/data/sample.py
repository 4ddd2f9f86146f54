"""A sample as tokens of one model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.data.targets import NEXT_TOKEN, Target, TargetWidths
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
    """A sample as one model reads it."""

    key: str
    task: Task
    tokens: np.ndarray
    """int64 ``[n]`` ids."""
    roles: np.ndarray
    """uint8 ``[n]``, codes of ``aia.roles``; all 0 for an inactive sample."""
    targets: Mapping[str, Target]
    """What is to be learned, by name; a name without an entry may be missing."""
    images: tuple[ImageSource, ...] = ()
    """Images to look at that are no codes among the tokens, in the order of their tokens."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def label_weights(self) -> np.ndarray:
        """float32 ``[n]``: weight of each token as a next-token label, 0 where it is none."""
        weights = np.zeros(len(self), np.float32)
        target = self.targets.get(NEXT_TOKEN)
        if target is not None:
            weights[target.positions + 1] = target.weights
        return weights


class PromptBuilder(Protocol):
    """A model's way to write a sample. Pure: same in, same out."""

    targets: TargetWidths
    """The targets that its samples have."""
    image_size: int
    """Side in pixels of the images to look at; 0 for a model that looks at codes only."""

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
