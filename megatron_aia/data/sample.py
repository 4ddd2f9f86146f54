"""A sample as tokens of one model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.data.targets import NEXT_TOKEN, NEXT_TOKEN_ONLY, Target, TargetWidths
from megatron_aia.data.token_names import TokenNames
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.shards.raw_sample import RawSample


@dataclass(frozen=True)
class ImageSource:
    """An image that the model looks at; nothing is read before ``load``."""

    stop: int
    """Position in the sample after the last token that stands for the image."""
    load: Callable[[], np.ndarray]
    """Read and prepare it: uint8 ``[3, size, size]``. A damaged one raises CorruptSampleError."""


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


class SampleEncoder(Protocol):
    """A model's way to write a sample: all that data knows of a model. Same in, same out.

    An encoder that inherits this protocol takes over the defaults.
    """

    fingerprint: str
    """Changes whenever it may write a sample otherwise."""
    pad_id: int
    """Token id of padding."""
    targets: TargetWidths = NEXT_TOKEN_ONLY
    """The targets that its samples have."""
    image_size: int = 0
    """Side in pixels of the images to look at; 0 for a model that looks at codes only."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """Of the text."""

    @property
    def token_names(self) -> TokenNames:
        """What ids stand for that are no text."""

    def lane(self, task: Task) -> int:
        """Return the lane of a task. Samples of different lanes never share a micro-batch.

        A model that sends tasks through different layers gives each its lane, and
        ``MicroBatch.lane`` chooses the layers.
        """
        return 0

    def __call__(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        """Write ``sample`` as tokens; without its prompt if ``drop_prompt``.

        Raises:
            ValueError: it cannot be written; the text names it.
        """

    def dry_run(self, sample: RawSample) -> TokenizedSample:
        """Write ``sample`` with its prompt, but decode no picture: sequences are planned with this.

        Everything is as in the sample itself, but any code may stand for one that would have to be
        made of a picture.

        Raises:
            ValueError: it cannot be written; the text names it.
        """
