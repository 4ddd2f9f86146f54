"""The two forms of a sample: as read from a shard, and as tokens of one model."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from megatron_aia.aia.roles import Task

IMAGE_TAG = "<image>"


@dataclass(frozen=True)
class Turn:
    """One side's words. ``IMAGE_TAG`` in the text marks where an image stands."""

    role: str
    """``human`` or ``gpt``."""
    text: str


@dataclass(frozen=True)
class RawSample:
    """A sample as stored: words, and image codes in the order of their tags."""

    key: str
    """Unique name, ``<shard file>/<key in the shard>``; errors quote it."""
    task: Task
    turns: tuple[Turn, ...]
    codes: tuple[np.ndarray, ...] = field(default=())
    """int64 ``[height, width]`` each, in tokens, every value in ``[0, codebook_size)``."""


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

    def __len__(self) -> int:
        return len(self.tokens)


PromptBuilder = Callable[[RawSample, bool], TokenizedSample]
"""``(sample, drop_prompt) -> tokens``: a model's way to write a sample. Pure: same in, same out."""
