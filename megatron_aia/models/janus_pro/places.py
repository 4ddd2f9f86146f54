"""Where the tokens of each kind stand, found on the host: a GPU would have to be waited for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_aia.models.janus_pro.vocabulary import JanusVocabulary
from megatron_aia.runtime.context_parallel_slices import slice_tensor

NO_LABEL = -1


@dataclass(frozen=True)
class Places:
    """Positions among the ``b * s`` tokens of this rank, int64, ascending."""

    codes: Tensor
    """Tokens that are image codes."""
    slots: Tensor
    """Tokens that hold a feature of an image to look at."""
    features: Tensor
    """As ``slots``: the number of the feature, of all that the whole sequences hold."""
    text_labels: Tensor
    """Labels of the text head."""
    code_labels: Tensor
    """Labels of the image head."""


def find_places(
    ids: JanusVocabulary,
    tokens: Tensor,
    labels: Tensor | None = None,
    sequence_tokens: Tensor | None = None,
    rank: int = 0,
    size: int = 1,
) -> Places:
    """Return the places of a micro-batch.

    Args:
        ids: numbering of the tokens.
        tokens: ``[b, s]``, those that this context-parallel rank holds.
        labels: as ``tokens``, ``NO_LABEL`` where there is none; None has none at all.
        sequence_tokens: ``[b, s * size]`` of whole sequences, where ranks share them.
        rank: among the ``size`` context-parallel ranks.
        size: of the context-parallel group.
    """
    is_slot = tokens == ids.image_slot
    slots = _positions(is_slot)
    features = torch.arange(len(slots), device=slots.device)
    if sequence_tokens is not None:
        of_sequence = sequence_tokens == ids.image_slot
        number = of_sequence.flatten().cumsum(0).view_as(of_sequence) - 1
        features = slice_tensor(number, rank, size, dim=1).flatten()[slots]
    targets = torch.full_like(tokens, NO_LABEL) if labels is None else labels
    return Places(
        codes=_positions((tokens >= ids.first_code) & (tokens < ids.image_slot)),
        slots=slots,
        features=features,
        text_labels=_positions((targets >= 0) & (targets < ids.first_code)),
        code_labels=_positions(targets >= ids.first_code),
    )


def _positions(chosen: Tensor) -> Tensor:
    return chosen.flatten().nonzero().flatten()
