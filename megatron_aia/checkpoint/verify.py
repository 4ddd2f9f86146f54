"""The converted model against the one it came from."""

from collections.abc import Callable
from pathlib import Path

import torch

from megatron_aia.checkpoint.unsplit import UnsplitWeights
from megatron_aia.models.backbone import packed_causal_mask

_ROWS, _LENGTH = 2, 128
_TOLERANCE = 1e-4


def verify(
    reference: Callable[[torch.Tensor], torch.Tensor], weights: UnsplitWeights, path: Path
) -> str:
    """Compare the fp32 logits of random ids.

    Args:
        reference: ids ``[b, s]`` to the source's logits ``[b, s, vocabulary]``.
        weights: the model to load into.
        path: the converted checkpoint.

    Returns:
        What was found, for a reader.

    Raises:
        ValueError: the largest difference is above 1e-4 of the largest logit.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(weights.vocab_size, (_ROWS, _LENGTH), generator=generator)
    expected = reference(ids)
    decoder = weights.load_model(path)
    positions = torch.arange(_LENGTH).expand(_ROWS, -1)
    mask = packed_causal_mask(torch.zeros_like(ids))
    with torch.no_grad():
        actual = decoder(ids, positions, mask)[..., : weights.vocab_size]
    difference = float((actual - expected).abs().max())
    relative = difference / float(expected.abs().max())
    agreement = float((actual.argmax(-1) == expected.argmax(-1)).float().mean())
    found = (
        f"largest logit difference {difference:.1e} ({relative:.1e} of the largest logit), "
        f"top-1 agreement {agreement:.2%}"
    )
    # Written so that NaN fails too.
    if not relative <= _TOLERANCE:
        raise ValueError(f"the converted model computes something else: {found}")
    return found
