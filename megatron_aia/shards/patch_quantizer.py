"""Squares of pixels replaced by the nearest of a few: an image tokeniser for small machines."""

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from megatron_aia.runtime.optional import import_optional
from megatron_aia.shards.pictures import crop_to_square

if TYPE_CHECKING:
    from PIL.Image import Image


class PatchQuantizer:
    """An ``ImageTokenizer`` whose codebook is a file of squares of pixels.

    Args:
        codebook: uint8 ``[n, p, p, 3]``, RGB squares of side p.
        image_area: pixels a picture is resized to, up to rounding to whole squares.
        is_square: cut a square out of the middle of every picture, as some models want it.
    """

    def __init__(self, codebook: np.ndarray, image_area: int, is_square: bool = False) -> None:
        if codebook.dtype != np.uint8 or codebook.ndim != 4 or codebook.shape[3] != 3:
            raise ValueError(f"codebook is {codebook.dtype} {codebook.shape}, not uint8 [n,p,p,3]")
        self.codebook = codebook
        self.image_area = image_area
        self.is_square = is_square
        self.name = f"patch_quantizer-{hashlib.sha256(codebook.tobytes()).hexdigest()[:12]}"

    @classmethod
    def load(cls, path: str | Path, image_area: Optional[int] = None) -> "PatchQuantizer":
        """Read a file of ``save``; ``image_area`` replaces the stored one.

        Raises:
            ValueError: the file is no codebook.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                is_square = "is_square" in arrays and bool(arrays["is_square"])
                area = image_area or int(arrays["image_area"])
                return cls(arrays["codebook"], area, is_square)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a patch codebook: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file without pickled objects."""
        arrays: dict[str, Any] = {
            "codebook": self.codebook,
            "image_area": np.int64(self.image_area),
        }
        if self.is_square:
            arrays["is_square"] = np.True_
        np.savez(path, **arrays)

    @property
    def fingerprint(self) -> str:
        """See ``ImageTokenizer``."""
        return f"{self.name}|{self.image_area}|{self.is_square}"

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
        if self.is_square:
            side = max(1, round(math.sqrt(self.image_area) / self.patch_size))
            return side, side
        scale = math.sqrt(self.image_area / (width * height)) / self.patch_size
        return max(1, round(height * scale)), max(1, round(width * scale))

    def encode(self, image: "Image") -> np.ndarray:
        """See ``ImageTokenizer``."""
        height, width = self.grid(image.width, image.height)
        resized = self._resize(image.convert("RGB"), height, width)
        patches = cut_patches(np.asarray(resized, np.float32), self.patch_size)
        codes = self.codebook.reshape(self.codebook_size, -1).astype(np.float32)
        return nearest(patches, codes).reshape(height, width)

    def _resize(self, image: "Image", height: int, width: int) -> "Image":
        """Return the picture as ``height`` x ``width`` squares."""
        side = self.patch_size
        if self.is_square:
            return crop_to_square(image, height * side)
        bicubic = import_optional("PIL.Image", "demo").Resampling.BICUBIC
        return image.resize((width * side, height * side), bicubic)

    def decode(self, codes: np.ndarray) -> "Image":
        """See ``ImageTokenizer``."""
        return paste_patches(self.codebook[codes])


def nearest(points: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the number of the vector ``[n, c]`` that is nearest to each point ``[m, c]``."""
    # |point|^2 is the same for every vector and does not change which is nearest.
    numbers: np.ndarray = ((vectors**2).sum(1) - 2 * points @ vectors.T).argmin(1)
    return numbers


def paste_patches(squares: np.ndarray) -> "Image":
    """Return the RGB picture of squares, uint8 ``[h, w, p, p, 3]``."""
    height, width, side = squares.shape[:3]
    pixels = squares.swapaxes(1, 2).reshape(height * side, width * side, 3)
    return import_optional("PIL.Image", "demo").fromarray(pixels)


def cut_patches(pixels: np.ndarray, side: int) -> np.ndarray:
    """Cut ``[H, W, 3]`` into whole squares, row by row: ``[n, side * side * 3]``."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    pixels = pixels[: rows * side, : columns * side]
    squares = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return squares.reshape(rows * columns, -1)
