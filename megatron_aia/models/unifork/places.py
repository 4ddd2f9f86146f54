"""Where the tokens of each kind stand, found on the host: a GPU would have to be waited for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_aia.models.unifork.vocabulary import UniForkVocabulary

NO_LABEL = -1


@dataclass(frozen=True)
class Places:
    """Positions among the ``b * s`` tokens of this rank, int64, ascending."""

    images: Tensor
    """Image tokens."""
    markers: Tensor
    """Markers around images."""
    text_labels: Tensor
    """Labels of the text head."""
    image_labels: Tensor
    """Labels of the image head."""


def find_places(ids: UniForkVocabulary, tokens: Tensor, labels: Tensor | None = None) -> Places:
    """Return the places of a micro-batch.

    Args:
        ids: numbering of the tokens.
        tokens: ``[b, s]``, those that this context-parallel rank holds.
        labels: as ``tokens``, ``NO_LABEL`` where there is none; None has none at all.
    """
    targets = torch.full_like(tokens, NO_LABEL) if labels is None else labels
    return Places(
        images=_positions(tokens >= ids.first_code),
        markers=_positions((tokens == ids.begin) | (tokens == ids.end)),
        text_labels=_positions((targets >= 0) & (targets < ids.text_size)),
        image_labels=_positions(targets >= ids.first_code),
    )


def _positions(chosen: Tensor) -> Tensor:
    return chosen.flatten().nonzero().flatten()
