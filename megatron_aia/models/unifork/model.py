"""UniFork as the trainer sees it."""

import torch
from torch import Tensor

from megatron_aia.aia.inject import AIAContext
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.backbone import PackedGPTModel, is_last_chunk, packed_causal_mask
from megatron_aia.models.lanes import Way
from megatron_aia.models.losses import LossTerm, NextToken, Outputs
from megatron_aia.models.spec import ModelSpec
from megatron_aia.models.unifork.flops import unifork_flops
from megatron_aia.models.unifork.inference import UniForkInference
from megatron_aia.models.unifork.network import UniForkModel, vocabulary
from megatron_aia.models.unifork.places import NO_LABEL, Places, find_places
from megatron_aia.models.unifork.sample_encoder import UniForkSampleEncoder
from megatron_aia.models.unifork.settings import unifork_model
from megatron_aia.models.unifork.special_tokens import SYSTEM_PROMPT
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.shards.image_tokenizer import ImageTokenizer


def build(config: Config, parallel: Parallel, virtual_stage: int) -> PackedGPTModel:
    """Build one model chunk; its weights are set afterwards."""
    return UniForkModel(config, parallel, virtual_stage)


def forward(model: torch.nn.Module, batch: MicroBatch, aia: AIAContext | None) -> Tensor | Outputs:
    """Run one chunk on a micro-batch that is on the model's device; see ``ModelSpec``."""
    output: Tensor = model(
        batch.tokens,
        batch.position_ids,
        packed_causal_mask(batch.segment_ids) if aia is None else None,
        labels=batch.next_token_labels(fill=NO_LABEL),
        places=Places(**batch.places) if batch.places else None,
        extra_block_kwargs={"attention_bias": Way(batch.lane, aia)},
    )
    return {"nll": output} if is_last_chunk(model) else output


def places(config: Config, batch: MicroBatch, rank: int, size: int) -> dict[str, Tensor]:
    """Return where the tokens of each kind stand; see ``ModelSpec``."""
    labels = batch.next_token_labels(fill=NO_LABEL)
    return vars(find_places(vocabulary(unifork_model(config)), batch.tokens, labels))


def encoder(
    config: Config, tokenizer: TextTokenizer, images: ImageTokenizer | None = None
) -> UniForkSampleEncoder:
    """Return the sample encoder.

    Raises:
        ValueError: a tokeniser is not the model's.
    """
    model = unifork_model(config)
    return UniForkSampleEncoder(
        vocabulary(model), tokenizer, model.grid, config.aia.aia_query_key_sets, images
    )


def inference(
    config: Config,
    tokenizer: TextTokenizer,
    images: ImageTokenizer | None = None,
    system_prompt: str | None = None,
) -> UniForkInference:
    """Return how the model draws and answers; see ``MakesInference``."""
    model = unifork_model(config)
    return UniForkInference(
        UniForkSampleEncoder(
            vocabulary(model),
            tokenizer,
            model.grid,
            config.aia.aia_query_key_sets,
            images,
            SYSTEM_PROMPT if system_prompt is None else system_prompt,
        ),
        model.image_size**2,
    )


def losses(config: Config) -> tuple[LossTerm, ...]:
    """Return the loss of text tokens and of the codes of image tokens."""
    return (NextToken(normalization=config.training.loss_normalization),)


SPEC = ModelSpec(
    name="unifork",
    build=build,
    forward=forward,
    losses=losses,
    encoder=encoder,
    places=places,
    flops=unifork_flops,
    # It draws images of one size.
    image_area=lambda config: unifork_model(config).image_size ** 2,
    inference=inference,
)
