"""Emu3 on megatron-core: the shared decoder over one vocabulary of text and image codes."""

import torch

from megatron_aia.aia.inject import AIAContext
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.backbone import (
    PackedGPTModel,
    decoder_arguments,
    is_last_chunk,
    packed_causal_mask,
)
from megatron_aia.models.emu3.inference import Emu3Inference
from megatron_aia.models.emu3.sample_encoder import SYSTEM_PROMPT, Emu3SampleEncoder
from megatron_aia.models.emu3.vocabulary import Emu3Vocabulary
from megatron_aia.models.flops import decoder_flops
from megatron_aia.models.losses import LossTerm, NextToken, Outputs
from megatron_aia.models.spec import ModelSpec
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.shards.image_tokenizer import ImageTokenizer


def vocabulary(config: Config) -> Emu3Vocabulary:
    """Return the ids of the configured model."""
    return Emu3Vocabulary(config.model.text_vocab_size, config.model.codebook_size)


def build(config: Config, parallel: Parallel, virtual_stage: int) -> PackedGPTModel:
    """Build one model chunk; its weights are set afterwards."""
    size = vocabulary(config).size
    return PackedGPTModel(**decoder_arguments(config, parallel, virtual_stage, size))


def forward(
    model: torch.nn.Module, batch: MicroBatch, aia: AIAContext | None
) -> torch.Tensor | Outputs:
    """Run one chunk on a micro-batch that is on the model's device.

    Args:
        model: the chunk, wrapped for mixed precision and data parallelism or not.
        batch: every stage needs positions; the first also tokens, the last also targets.
        aia: travels to every layer's core attention; None runs megatron-core's own.
    """
    output: torch.Tensor = model(
        batch.tokens,
        batch.position_ids,
        packed_causal_mask(batch.segment_ids) if aia is None else None,
        labels=batch.next_token_labels(fill=0),
        extra_block_kwargs=None if aia is None else {"attention_bias": aia},
    )
    return {"nll": output} if is_last_chunk(model) else output


def encoder(
    config: Config,
    tokenizer: TextTokenizer,
    images: ImageTokenizer | None = None,
    system_prompt: str | None = None,
) -> Emu3SampleEncoder:
    """Return the sample encoder; ``system_prompt`` is not that of training.

    Raises:
        ValueError: the tokeniser and the configured vocabulary do not fit.
    """
    if tokenizer.vocab_size != config.model.text_vocab_size:
        raise ValueError(
            f"the tokeniser has {tokenizer.vocab_size} ids but --text-vocab-size is "
            f"{config.model.text_vocab_size}; point --tokenizer-model to the model's own tokeniser"
        )
    sets, prompt = config.aia.aia_query_key_sets, system_prompt
    return Emu3SampleEncoder(
        vocabulary(config), tokenizer, sets, images, SYSTEM_PROMPT if prompt is None else prompt
    )


def inference(
    config: Config,
    tokenizer: TextTokenizer,
    images: ImageTokenizer | None = None,
    system_prompt: str | None = None,
) -> Emu3Inference:
    """Return how the model draws and answers; see ``MakesInference``."""
    return Emu3Inference(encoder(config, tokenizer, images, system_prompt))


def losses(config: Config) -> tuple[LossTerm, ...]:
    """Return the next-token loss."""
    return (NextToken(normalization=config.training.loss_normalization),)


def flops(config: Config, batch: MicroBatch) -> float:
    """Return the operations of one micro-batch; see ``models.flops``."""
    return decoder_flops(config, batch, vocabulary(config).size)


SPEC = ModelSpec(
    name="emu3",
    build=build,
    forward=forward,
    losses=losses,
    flops=flops,
    encoder=encoder,
    inference=inference,
)
