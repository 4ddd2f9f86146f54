"""Image tokenisers: a picture in, a grid of codebook entries out, and back."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Protocol

import numpy as np

from megatron_aia.data.emu3_images import EMU3_IMAGE_AREA, Emu3Quantizer
from megatron_aia.data.janus_images import JANUS_IMAGE_AREA, JanusQuantizer
from megatron_aia.runtime.optional import import_optional
from megatron_aia.shards.pictures import crop_to_square

if TYPE_CHECKING:
    from PIL.Image import Image

_JANUS_TYPES = ("multi_modality", "janus", "janus_vqgan")


class ImageTokenizer(Protocol):
    """What the shard builder and the prompts need of an image tokeniser."""

    @property
    def name(self) -> str:
        """Kind and content hash; equal names make and read the same codes."""

    @property
    def fingerprint(self) -> str:
        """The name, and the sizes that decide how many codes a picture gets."""

    @property
    def codebook_size(self) -> int:
        """Every code is below it."""

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return (h, w) of the codes of a picture of ``width`` x ``height`` pixels.

        Raises:
            ValueError: the picture is too narrow or too small.
        """

    def encode(self, image: "Image") -> np.ndarray:
        """Return the codes of a picture of any size and mode, int64 ``[h, w]``.

        Raises:
            ValueError: the picture is too narrow or too small.
        """

    def decode(self, codes: np.ndarray) -> "Image":
        """Return the RGB picture of integer codes ``[h, w]``."""


def encode_picture(tokenizer: ImageTokenizer, pixels: np.ndarray) -> np.ndarray:
    """Return the codes of a decoded picture, those of the file it comes from.

    Args:
        tokenizer: makes the codes.
        pixels: uint8 ``[height, width, 3]``, turned as its camera meant it.

    Raises:
        ValueError: the picture is too narrow or too small.
    """
    return tokenizer.encode(import_optional("PIL.Image", "hf").fromarray(pixels))


def load_image_tokenizer(
    path: str | Path, image_area: Optional[int] = None, device: str = "cpu"
) -> ImageTokenizer:
    """Load a codebook (``*.npz``), or the image tokeniser in a local folder of Emu3 or Janus-Pro.

    Args:
        path: file or folder.
        image_area: pixels of a picture before it is encoded; the tokeniser's own when unset.
        device: torch device of a network; a codebook does not use it.

    Raises:
        ValueError: nothing is there, or it cannot be read.
    """
    path = Path(path)
    if path.is_file():
        return PatchQuantizer.load(path, image_area)
    if not path.is_dir():
        raise ValueError(f"no image tokeniser at {path}: expected an *.npz file or a model folder")
    if _model_type(path) in _JANUS_TYPES:
        return JanusQuantizer.from_folder(path, image_area or JANUS_IMAGE_AREA, device)
    return Emu3Quantizer.from_folder(path, image_area or EMU3_IMAGE_AREA, device)


def _model_type(folder: Path) -> object:
    try:
        return json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


class PatchQuantizer:
    """Squares of pixels replaced by the nearest of a few: an image tokeniser for small machines.

    Args:
        codebook: uint8 ``[n, p, p, 3]``, RGB squares of side p.
        image_area: pixels a picture is resized to, up to rounding to whole squares.
        is_square: cut a square out of the middle of every picture, as Janus-Pro does.
    """

    def __init__(self, codebook: np.ndarray, image_area: int, is_square: bool = False) -> None:
        if codebook.dtype != np.uint8 or codebook.ndim != 4 or codebook.shape[3] != 3:
            raise ValueError(f"codebook is {codebook.dtype} {codebook.shape}, not uint8 [n,p,p,3]")
        self.codebook = codebook
        self.image_area = image_area
        self.is_square = is_square
        self.name = f"patch_quantizer-{hashlib.sha256(codebook.tobytes()).hexdigest()[:12]}"

    @classmethod
    def train(
        cls,
        images: Sequence["Image"],
        codebook_size: int,
        patch_size: int,
        image_area: int,
        is_square: bool = False,
    ) -> "PatchQuantizer":
        """Find the squares by k-means; same pictures, same codebook.

        Args:
            images: pictures at the size at which they will be encoded.
            codebook_size: squares to find.
            patch_size: side of a square in pixels.
            image_area: see the class.
            is_square: see the class.

        Raises:
            ValueError: the pictures have fewer squares than ``codebook_size``.
        """
        cluster = import_optional("sklearn.cluster", "demo")
        threadpoolctl = import_optional("threadpoolctl", "demo")
        pixels = [np.asarray(image.convert("RGB"), np.float32) for image in images]
        patches = np.concatenate([_cut_patches(p, patch_size) for p in pixels])
        if len(patches) < codebook_size:
            raise ValueError(f"{len(patches)} patches are too few for {codebook_size} codes")
        # Several threads would add up in any order, and the codebook would not repeat.
        with threadpoolctl.threadpool_limits(1):
            k_means = cluster.KMeans(codebook_size, n_init=1, max_iter=50, random_state=0)
            centers = k_means.fit(patches).cluster_centers_
        shape = (codebook_size, patch_size, patch_size, 3)
        codebook = centers.round().clip(0, 255).astype(np.uint8).reshape(shape)
        return cls(codebook, image_area, is_square)

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
        patches = _cut_patches(np.asarray(resized, np.float32), self.patch_size)
        codes = self.codebook.reshape(self.codebook_size, -1).astype(np.float32)
        # |patch|^2 is the same for every code and does not change which is nearest.
        distances = (codes**2).sum(1) - 2 * patches @ codes.T
        return distances.argmin(1).reshape(height, width)

    def _resize(self, image: "Image", height: int, width: int) -> "Image":
        """Return the picture as ``height`` x ``width`` squares."""
        side = self.patch_size
        if self.is_square:
            return crop_to_square(image, height * side)
        bicubic = import_optional("PIL.Image", "demo").Resampling.BICUBIC
        return image.resize((width * side, height * side), bicubic)

    def decode(self, codes: np.ndarray) -> "Image":
        """See ``ImageTokenizer``."""
        height, width = codes.shape
        # [h, w, p, p, 3] -> [h * p, w * p, 3]
        pixels = self.codebook[codes].swapaxes(1, 2)
        pixels = pixels.reshape(height * self.patch_size, width * self.patch_size, 3)
        return import_optional("PIL.Image", "demo").fromarray(pixels)


def _cut_patches(pixels: np.ndarray, side: int) -> np.ndarray:
    """Cut ``[H, W, 3]`` into whole squares, row by row: ``[n, side * side * 3]``."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    pixels = pixels[: rows * side, : columns * side]
    squares = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return squares.reshape(rows * columns, -1)
