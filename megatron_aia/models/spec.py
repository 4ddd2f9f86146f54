"""How a model family is built, run and trained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_aia.aia.inject import AlignInput
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.images import ImageTokenizer
from megatron_aia.data.sample import PromptBuilder
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.backbone import PackedGPTModel
from megatron_aia.models.losses import LossTerm, Outputs
from megatron_aia.models.token_names import TokenNames
from megatron_aia.runtime.parallel import Parallel


class ModelPrompt(PromptBuilder, Protocol):
    """A model's way to write a sample, and a name for that way."""

    fingerprint: str
    tokenizer: TextTokenizer

    @property
    def token_names(self) -> TokenNames:
        """What ids stand for that are no text."""


class MakesPrompt(Protocol):
    """How a family makes its prompt builder."""

    def __call__(
        self, config: Config, tokenizer: TextTokenizer, images: ImageTokenizer | None = None
    ) -> ModelPrompt:
        """Return the prompt builder; ``images`` makes the codes that the shards do not have.

        Raises:
            ValueError: a tokeniser does not fit the model.
        """


@dataclass(frozen=True)
class ModelSpec:
    """The part of a model family that needs torch."""

    name: str
    build: Callable[[Config, Parallel, int], PackedGPTModel]
    """``(config, parallel, virtual_stage)`` to one model chunk; its weights are set afterwards."""
    forward: Callable[[torch.nn.Module, MicroBatch, AlignInput | None], torch.Tensor | Outputs]
    """Run a chunk: hidden states, or on the last one outputs by name, for the targets that are in
    the micro-batch."""
    losses: Callable[[Config], tuple[LossTerm, ...]]
    """What is learned; each term reads a target that the prompt builder declares."""
    prompt: MakesPrompt
    pad_id: Callable[[Config], int]
