"""How a model family is built, run and trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_aia.aia.inject import AIAContext
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.sample import SampleEncoder
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.backbone import PackedGPTModel
from megatron_aia.models.flops import decoder_flops
from megatron_aia.models.inference import Inference
from megatron_aia.models.losses import LossTerm, Outputs
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.shards.image_tokenizer import ImageTokenizer


class MakesEncoder(Protocol):
    """How a family makes its sample encoder."""

    def __call__(
        self, config: Config, tokenizer: TextTokenizer, images: ImageTokenizer | None = None
    ) -> SampleEncoder:
        """Return the sample encoder; ``images`` makes the codes that the shards do not have.

        Raises:
            ValueError: a tokeniser does not fit the model.
        """


class MakesInference(Protocol):
    """How a family makes what draws and answers."""

    def __call__(
        self,
        config: Config,
        tokenizer: TextTokenizer,
        images: ImageTokenizer | None = None,
        system_prompt: str | None = None,
    ) -> Inference:
        """Return it; ``system_prompt`` begins a conversation, None is that of training.

        Raises:
            ValueError: a tokeniser does not fit the model.
        """


@dataclass(frozen=True)
class ModelSpec:
    """The part of a model family that needs torch."""

    name: str
    build: Callable[[Config, Parallel, int], PackedGPTModel]
    """``(config, parallel, virtual_stage)`` to one model chunk; its weights are set afterwards."""
    forward: Callable[[torch.nn.Module, MicroBatch, AIAContext | None], torch.Tensor | Outputs]
    """Run a chunk: hidden states, or on the last one outputs by name, for the targets that are in
    the micro-batch."""
    losses: Callable[[Config], tuple[LossTerm, ...]]
    """What is learned; each term reads a target that the sample encoder declares."""
    encoder: MakesEncoder
    places: Callable[[Config, MicroBatch, int, int], Mapping[str, torch.Tensor]] = (
        lambda config, batch, rank, size: {}
    )
    """``(config, batch, rank, size)`` to what ``MicroBatch.places`` holds, from the part of a
    context-parallel rank, on the host. A model that looks for tokens itself makes a GPU wait."""
    flops: Callable[[Config, MicroBatch], float] = decoder_flops
    """``(config, batch)`` to the operations of a forward and backward over whole sequences."""
    image_area: Callable[[Config], int | None] = lambda config: None
    """Pixels of a picture before its codes are made; None leaves that to the image tokeniser."""
    inference: MakesInference | None = None
    """How it draws and answers; None for a family that does neither."""
