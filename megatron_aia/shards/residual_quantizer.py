"""Squares of pixels as sums of a few: an image tokeniser of residual codes for small machines."""

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np

from megatron_aia.shards.patch_quantizer import (
    PatchQuantizer,
    cut_patches,
    nearest,
    paste_patches,
)
from megatron_aia.shards.pictures import crop_to_square

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = 128
"""What differences are added to."""


class ResidualPatchQuantizer:
    """An ``ImageTokenizer`` of square pictures; a token's codes come from one codebook.

    Code i is the square nearest to what codes 0 .. i-1 leave of a picture's square.

    Args:
        codebook: int16 ``[n, p, p, 3]``, differences from grey of squares of side p.
        depth: codes of a token.
        image_area: pixels a picture is resized to, up to rounding to whole squares.
    """

    def __init__(self, codebook: np.ndarray, depth: int, image_area: int) -> None:
        if codebook.dtype != np.int16 or codebook.ndim != 4 or codebook.shape[3] != 3:
            raise ValueError(f"codebook is {codebook.dtype} {codebook.shape}, not int16 [n,p,p,3]")
        self.codebook = codebook
        self.depth = depth
        self.image_area = image_area
        digest = hashlib.sha256(codebook.tobytes()).hexdigest()[:12]
        self.name = f"residual_patch_quantizer-{depth}-{digest}"

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file without pickled objects."""
        sizes = {"depth": np.int64(self.depth), "image_area": np.int64(self.image_area)}
        np.savez(path, residual_codebook=self.codebook, **sizes)

    @property
    def fingerprint(self) -> str:
        """See ``ImageTokenizer``."""
        return f"{self.name}|{self.image_area}"

    @property
    def codebook_size(self) -> int:
        """See ``ImageTokenizer``."""
        return len(self.codebook)

    @property
    def patch_size(self) -> int:
        """Side of a square in pixels."""
        return self.codebook.shape[1]

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """See ``ImageTokenizer``."""
        side = max(1, round(math.sqrt(self.image_area) / self.patch_size))
        return side, side

    def encode(self, image: "Image") -> np.ndarray:
        """Return the codes of a picture, int64 ``[h, w, depth]``."""
        height, width = self.grid(image.width, image.height)
        square = crop_to_square(image.convert("RGB"), height * self.patch_size)
        rest = cut_patches(np.asarray(square, np.float32), self.patch_size) - GREY
        vectors = self.codebook.reshape(self.codebook_size, -1).astype(np.float32)
        codes = []
        for _ in range(self.depth):
            codes.append(nearest(rest, vectors))
            rest = rest - vectors[codes[-1]]
        return np.stack(codes, axis=-1).reshape(height, width, self.depth)

    def decode(self, codes: np.ndarray) -> "Image":
        """Return the RGB picture of integer codes ``[h, w, depth]``."""
        squares = self.codebook[codes].astype(np.int64).sum(axis=2) + GREY
        return paste_patches(squares.clip(0, 255).astype(np.uint8))


def load_quantizer(
    path: str | Path, image_area: Optional[int] = None
) -> PatchQuantizer | ResidualPatchQuantizer:
    """Read a file that either quantiser saved; ``image_area`` replaces the stored one.

    Raises:
        ValueError: the file is no codebook.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "residual_codebook" in arrays:
                area = image_area or int(arrays["image_area"])
                return ResidualPatchQuantizer(
                    arrays["residual_codebook"], int(arrays["depth"]), area
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a patch codebook: {error}") from error
    return PatchQuantizer.load(path, image_area)
