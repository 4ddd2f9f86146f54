"""Floating-point operations of one forward and backward, nothing computed twice, padding left out.

A product of n x k by k x m is 2 n k m operations; a backward has two products for each of the
forward's. What activation recompute repeats is not counted, so that a utilisation made of these is
MFU: how much of the hardware's peak the model itself needed.
"""

from megatron_aia.config import Config, ModelConfig
from megatron_aia.data.batch import MicroBatch


def decoder_flops(config: Config, batch: MicroBatch, vocab_size: int = 0) -> float:
    """Return the operations of the decoder's layers and of a head over every token.

    Args:
        config: of the run.
        batch: whole sequences.
        vocab_size: of the head; 0 takes text and codes.
    """
    model = config.model
    vocabulary = vocab_size or model.text_vocab_size + model.codebook_size
    head = 2.0 * batch.num_tokens * model.hidden_size * vocabulary
    return layers_flops(model, batch) + 3 * head


def layers_flops(model: ModelConfig, batch: MicroBatch) -> float:
    """Return the operations of the decoder's layers, forward and backward."""
    heads, groups = model.num_attention_heads, model.num_query_groups
    attention = model.hidden_size * model.head_size * (2 * heads + 2 * groups)
    weights = attention + 3 * model.hidden_size * model.ffn_hidden_size
    # Scores and their product with the values, each over half a square.
    pairs = sum((segment.stop - segment.start) ** 2 for segment in batch.segments)
    maps = 2.0 * pairs * heads * model.head_size
    return 3 * model.num_layers * (2.0 * batch.num_tokens * weights + maps)


def aia_flops(config: Config, batch: MicroBatch) -> float:
    """Return the operations that exact intensities add: four products of each rectangle.

    Scores in forward, again in backward, and the gradients of queries and keys.
    """
    if not config.aia.aia:
        return 0.0
    model = config.model
    pairs = sum(
        len(term.queries) * len(term.keys) for segment in batch.segments for term in segment.terms
    )
    return 8.0 * pairs * model.num_attention_heads * model.head_size * model.num_layers
