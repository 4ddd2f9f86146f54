"""Floating-point operations of UniFork: the layers of one branch, and the head of its labels."""

from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.models.flops import layers_flops
from megatron_aia.models.unifork.network import vocabulary
from megatron_aia.models.unifork.places import NO_LABEL, find_places
from megatron_aia.models.unifork.settings import UniForkModelConfig, unifork_model


def unifork_flops(config: Config, batch: MicroBatch) -> float:
    """Return the operations of one micro-batch; see ``models.flops``.

    A token passes as many layers as the model has numbers, whichever branch it takes. Norms,
    activations and embeddings are not counted.

    Args:
        config: of the run.
        batch: whole sequences.
    """
    model = unifork_model(config)
    labels = batch.next_token_labels(fill=NO_LABEL)
    places = find_places(vocabulary(model), batch.tokens, labels)
    text_head = len(places.text_labels) * model.hidden_size * model.text_vocab_size
    way_in = len(places.images) * (model.code_channels + model.hidden_size) * model.hidden_size
    image_head = len(places.image_labels) * _head_flops(model)
    return layers_flops(model, batch) + 6.0 * (text_head + way_in) + 3.0 * image_head


def _head_flops(model: UniForkModelConfig) -> float:
    """Return the forward's operations for one image token, all of its codes."""
    width, wide, depth = model.hidden_size, model.depth_attention_size, model.code_depth
    layer = 2 * width * wide + 4 * wide * wide + 2 * width * model.depth_ffn_hidden_size
    # The first entry comes of the hidden state, the others of codes.
    entries = width * width + (depth - 1) * model.code_channels * width
    classifier = depth * width * model.codebook_size
    # Scores and their product with the values: few entries, so not half a square.
    maps = 4.0 * depth * depth * wide * model.depth_num_layers
    return 2.0 * (depth * model.depth_num_layers * layer + entries + classifier) + maps
