"""Janus-Pro as the trainer sees it."""

import torch
from torch import Tensor

from megatron_aia.aia.inject import AIAContext
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.backbone import PackedGPTModel, is_last_chunk, packed_causal_mask
from megatron_aia.models.janus_pro.flops import janus_flops
from megatron_aia.models.janus_pro.inference import JanusInference
from megatron_aia.models.janus_pro.network import JanusModel, vocabulary
from megatron_aia.models.janus_pro.places import NO_LABEL, Places, find_places
from megatron_aia.models.janus_pro.sample_encoder import JanusSampleEncoder
from megatron_aia.models.janus_pro.settings import janus_model
from megatron_aia.models.janus_pro.special_tokens import JanusSpecialTokens
from megatron_aia.models.losses import LossTerm, NextToken, Outputs
from megatron_aia.models.spec import ModelSpec
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.shards.image_tokenizer import ImageTokenizer


def build(config: Config, parallel: Parallel, virtual_stage: int) -> PackedGPTModel:
    """Build one model chunk; its weights are set afterwards."""
    return JanusModel(config, parallel, virtual_stage)


def forward(model: torch.nn.Module, batch: MicroBatch, aia: AIAContext | None) -> Tensor | Outputs:
    """Run one chunk on a micro-batch that is on the model's device; see ``ModelSpec``."""
    output: Tensor = model(
        batch.tokens,
        batch.position_ids,
        packed_causal_mask(batch.segment_ids) if aia is None else None,
        images=batch.images,
        labels=batch.next_token_labels(fill=NO_LABEL),
        places=Places(**batch.places) if batch.places else None,
        extra_block_kwargs=None if aia is None else {"attention_bias": aia},
    )
    return {"nll": output} if is_last_chunk(model) else output


def places(config: Config, batch: MicroBatch, rank: int, size: int) -> dict[str, Tensor]:
    """Return where the tokens of each kind stand; see ``ModelSpec``."""
    labels = batch.next_token_labels(fill=NO_LABEL)
    found = find_places(
        vocabulary(janus_model(config)), batch.tokens, labels, batch.sequence_tokens, rank, size
    )
    return vars(found)


def encoder(
    config: Config,
    tokenizer: TextTokenizer,
    images: ImageTokenizer | None = None,
    system_prompt: str | None = None,
) -> JanusSampleEncoder:
    """Return the sample encoder; ``system_prompt`` is not that of training.

    Raises:
        ValueError: a tokeniser is not Janus-Pro's, or the text's is larger than the configured
            vocabulary.
    """
    model = janus_model(config)
    return JanusSampleEncoder(
        vocabulary(model),
        tokenizer,
        JanusSpecialTokens.find(tokenizer),
        config.aia.aia_query_key_sets,
        model.image_size,
        model.patch_size,
        images,
        system_prompt or "",
    )


def inference(
    config: Config,
    tokenizer: TextTokenizer,
    images: ImageTokenizer | None = None,
    system_prompt: str | None = None,
) -> JanusInference:
    """Return how the model draws and answers; see ``MakesInference``."""
    return JanusInference(encoder(config, tokenizer, images, system_prompt))


def losses(config: Config) -> tuple[LossTerm, ...]:
    """Return the next-token loss."""
    return (NextToken(normalization=config.training.loss_normalization),)


SPEC = ModelSpec(
    name="janus_pro",
    build=build,
    forward=forward,
    losses=losses,
    encoder=encoder,
    places=places,
    flops=janus_flops,
    # It draws images of one size.
    image_area=lambda config: janus_model(config).image_size ** 2,
    inference=inference,
)
