"""Floating-point operations of Janus-Pro: two heads, each over its own labels, and the ways in."""

from fnmatch import fnmatch

from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.models.flops import layers_flops
from megatron_aia.models.janus_pro.network import vocabulary
from megatron_aia.models.janus_pro.places import NO_LABEL, find_places
from megatron_aia.models.janus_pro.settings import JanusModelConfig, janus_model


def janus_flops(config: Config, batch: MicroBatch) -> float:
    """Return the operations of one micro-batch; see ``models.flops``.

    A frozen image tower has no backward. Norms, activations and embeddings are not counted.

    Args:
        config: of the run.
        batch: whole sequences.
    """
    model = janus_model(config)
    labels = batch.next_token_labels(fill=NO_LABEL)
    places = find_places(vocabulary(model), batch.tokens, labels)
    hidden, codes, slots = model.hidden_size, len(places.codes), len(places.slots)
    text_head = len(places.text_labels) * hidden * model.text_vocab_size
    image_head = len(places.code_labels) * hidden * (hidden + model.codebook_size)
    ways_in = codes * (model.code_channels + hidden) * hidden
    ways_in += slots * (model.vision_hidden_size + hidden) * hidden
    passes = (
        1 if any(fnmatch("vision_model.x", pattern) for pattern in config.training.freeze) else 3
    )
    return (
        layers_flops(model, batch)
        + 6.0 * (text_head + image_head + ways_in)
        + passes * _tower_flops(model, slots)
    )


def _tower_flops(model: JanusModelConfig, slots: int) -> float:
    """Return the forward's operations for so many patches, in images of equal size."""
    width, patches = model.vision_hidden_size, (model.image_size // model.patch_size) ** 2
    weights = 4 * width * width + 2 * width * model.vision_ffn_hidden_size
    # Every patch of an image sees every other.
    a_patch = model.vision_num_layers * (2.0 * weights + 4.0 * patches * width)
    return slots * (a_patch + 2.0 * 3 * model.patch_size**2 * width)
