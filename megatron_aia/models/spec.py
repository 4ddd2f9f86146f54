"""What the trainer knows of a model family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from megatron_aia.aia.inject import AlignInput
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.sample import RawSample, TokenizedSample
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.backbone import PackedGPTModel
from megatron_aia.runtime.parallel import Parallel


class ModelPrompt(Protocol):
    """A model's way to write a sample, and a name for that way."""

    fingerprint: str

    def __call__(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        """Write ``sample`` as tokens; without its prompt if ``drop_prompt``."""


@dataclass(frozen=True)
class ModelSpec:
    """A model family: the only thing a new model has to provide."""

    name: str
    build: Callable[[Config, Parallel, int], PackedGPTModel]
    """``(config, parallel, virtual_stage)`` to one model chunk; its weights are set afterwards."""
    forward: Callable[[torch.nn.Module, MicroBatch, AlignInput | None], torch.Tensor]
    """Run a chunk: ``[b, s]`` negative log-likelihoods on the last one, hidden states before."""
    prompt: Callable[[Config, TextTokenizer], ModelPrompt]
    pad_id: Callable[[Config], int]
