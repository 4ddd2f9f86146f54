"""One numbering for everything that stands at a position of a UniFork sequence."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

Ids = TypeVar("Ids", np.ndarray, Tensor)


@dataclass(frozen=True)
class UniForkVocabulary:
    """Ids of this project's sequences.

    ===========================  ====================================================
    ``[0, text_size)``           text and special tokens, the tokeniser's own ids
    ``begin``, ``end``           around an image; vectors of the projector, no labels
    ``[first_code, stop)``       image tokens: all codes of a token as one number
    ===========================  ====================================================

    Codes c_0 .. c_{d-1} of an image token are the id ``first_code + sum c_i x codebook_size^i``: a
    token of any depth is one int64, which is packed, cut and labelled as any other.
    """

    text_size: int
    codebook_size: int
    depth: int

    @property
    def begin(self) -> int:
        """Id of the marker before an image."""
        return self.text_size

    @property
    def end(self) -> int:
        """Id of the marker behind an image."""
        return self.text_size + 1

    @property
    def first_code(self) -> int:
        """Id of the image token whose codes are all 0."""
        return self.text_size + 2

    @property
    def stop(self) -> int:
        """First id that is none."""
        return self.first_code + self.codebook_size**self.depth

    def join_codes(self, codes: Ids) -> Ids:
        """Return ids ``[...]`` of codes ``[..., depth]``, int64."""
        ids = codes[..., -1]
        for i in range(self.depth - 2, -1, -1):
            ids = ids * self.codebook_size + codes[..., i]
        return ids + self.first_code

    def split_codes(self, ids: Tensor) -> Tensor:
        """Return codes ``[..., depth]`` of ids of image tokens ``[...]``."""
        import torch

        rest, codes = ids - self.first_code, []
        for _ in range(self.depth):
            codes.append(rest % self.codebook_size)
            rest = rest // self.codebook_size
        return torch.stack(codes, dim=-1)
