"""Image tokenisers: a picture in, a grid of codebook entries out, and back."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Protocol

import numpy as np

from megatron_aia.data.optional import import_optional

if TYPE_CHECKING:
    from PIL.Image import Image

EMU3_IMAGE_AREA = 720 * 720


class ImageTokenizer(Protocol):
    """What the shard builder needs of an image tokeniser."""

    @property
    def name(self) -> str:
        """Kind and content hash; equal names make and read the same codes."""

    @property
    def codebook_size(self) -> int:
        """Every code is below it."""

    def encode(self, image: "Image") -> np.ndarray:
        """Return the codes of a picture of any size and mode, int64 ``[h, w]``.

        Raises:
            ValueError: the picture is too narrow or too small.
        """

    def decode(self, codes: np.ndarray) -> "Image":
        """Return the RGB picture of integer codes ``[h, w]``."""


def load_image_tokenizer(
    path: str | Path, image_area: Optional[int] = None, device: str = "cpu"
) -> ImageTokenizer:
    """Load a codebook (``*.npz``) or a Hugging Face folder with Emu3's image tokeniser.

    Args:
        path: file or folder.
        image_area: pixels of a picture before it is encoded; the tokeniser's own when unset.
        device: torch device of Emu3's network; a codebook does not use it.

    Raises:
        ValueError: nothing is there, or it cannot be read.
    """
    path = Path(path)
    if path.is_file():
        return PatchQuantizer.load(path, image_area)
    if path.is_dir():
        return Emu3Quantizer.from_folder(path, image_area or EMU3_IMAGE_AREA, device)
    raise ValueError(f"no image tokeniser at {path}: expected an *.npz file or a model folder")


class PatchQuantizer:
    """Squares of pixels replaced by the nearest of a few: an image tokeniser for small machines.

    Args:
        codebook: uint8 ``[n, p, p, 3]``, RGB squares of side p.
        image_area: pixels a picture is resized to, up to rounding to whole squares.
    """

    def __init__(self, codebook: np.ndarray, image_area: int) -> None:
        if codebook.dtype != np.uint8 or codebook.ndim != 4 or codebook.shape[3] != 3:
            raise ValueError(f"codebook is {codebook.dtype} {codebook.shape}, not uint8 [n,p,p,3]")
        self.codebook = codebook
        self.image_area = image_area
        self.name = f"patch_quantizer-{hashlib.sha256(codebook.tobytes()).hexdigest()[:12]}"

    @classmethod
    def train(
        cls, images: Sequence["Image"], codebook_size: int, patch_size: int, image_area: int
    ) -> "PatchQuantizer":
        """Find the squares by k-means; same pictures, same codebook.

        Args:
            images: pictures at the size at which they will be encoded.
            codebook_size: squares to find.
            patch_size: side of a square in pixels.
            image_area: see the class.

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
        return cls(centers.round().clip(0, 255).astype(np.uint8).reshape(shape), image_area)

    @classmethod
    def load(cls, path: str | Path, image_area: Optional[int] = None) -> "PatchQuantizer":
        """Read a file of ``save``; ``image_area`` replaces the stored one.

        Raises:
            ValueError: the file is no codebook.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["codebook"], image_area or int(arrays["image_area"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a patch codebook: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file without pickled objects."""
        np.savez(path, codebook=self.codebook, image_area=np.int64(self.image_area))

    @property
    def codebook_size(self) -> int:
        """See ``ImageTokenizer``."""
        return len(self.codebook)

    @property
    def patch_size(self) -> int:
        """Side of a square in pixels."""
        return self.codebook.shape[1]

    def encode(self, image: "Image") -> np.ndarray:
        """See ``ImageTokenizer``."""
        side = self.patch_size
        scale = math.sqrt(self.image_area / (image.width * image.height)) / side
        width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        resized = image.convert("RGB").resize((width * side, height * side), _bicubic())
        patches = _cut_patches(np.asarray(resized, np.float32), side)
        codes = self.codebook.reshape(self.codebook_size, -1).astype(np.float32)
        # |patch|^2 is the same for every code and does not change which is nearest.
        distances = (codes**2).sum(1) - 2 * patches @ codes.T
        return distances.argmin(1).reshape(height, width)

    def decode(self, codes: np.ndarray) -> "Image":
        """See ``ImageTokenizer``."""
        height, width = codes.shape
        # [h, w, p, p, 3] -> [h * p, w * p, 3]
        pixels = self.codebook[codes].swapaxes(1, 2)
        pixels = pixels.reshape(height * self.patch_size, width * self.patch_size, 3)
        return import_optional("PIL.Image", "demo").fromarray(pixels)


class Emu3Quantizer:
    """Emu3's image tokeniser as transformers has it; 8 x 8 pixels a code.

    A picture is resized to ``image_area`` like the pictures Emu3 was trained on, then to multiples
    of 8 pixels. Build it with ``from_folder``.
    """

    def __init__(self, model: Any, image_area: int, min_pixels: int, max_pixels: int) -> None:
        # Its batch norms must use their stored statistics, whatever the model's parent does.
        self._model = model.eval()
        self._image_area = image_area
        self._pixel_range = (min_pixels, max_pixels)
        self.codebook_size: int = model.config.codebook_size
        weights = model.quantize.embedding.weight.detach().float().cpu().numpy()
        self.name = f"emu3_vq-{hashlib.sha256(weights.tobytes()).hexdigest()[:12]}"

    @classmethod
    def from_folder(
        cls, path: str | Path, image_area: int = EMU3_IMAGE_AREA, device: str = "cpu"
    ) -> "Emu3Quantizer":
        """Load the image tokeniser of a local folder that transformers wrote.

        The folder holds the tokeniser alone or a whole Emu3 (as ``Emu3-Chat-hf``), whose other
        weights are not loaded. ``preprocessor_config.json`` may set min_pixels and max_pixels.

        Raises:
            ValueError: no such model is there, or some of its weights are missing.
        """
        transformers = import_optional("transformers", "hf")
        try:
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            config = getattr(config, "vq_config", config)
            if config.model_type != "emu3_vqgan":
                raise ValueError(f"its model_type is {config.model_type}")
            model, report = transformers.Emu3VQVAE.from_pretrained(
                path,
                config=config,
                key_mapping={r"^(model\.)?vqmodel\.": ""},
                output_loading_info=True,
                local_files_only=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path} holds no Emu3 image tokeniser in the format of transformers: {error}"
            ) from error
        if report["missing_keys"]:
            raise ValueError(f"{path} lacks weights: {sorted(report['missing_keys'])[:3]} ...")
        settings_file = Path(path) / "preprocessor_config.json"
        settings = json.loads(settings_file.read_text()) if settings_file.is_file() else {}
        min_pixels = settings.get("min_pixels", 512 * 512)
        max_pixels = settings.get("max_pixels", 1024 * 1024)
        return cls(model.to(device), image_area, min_pixels, max_pixels)

    def encode(self, image: "Image") -> np.ndarray:
        """See ``ImageTokenizer``."""
        torch = import_optional("torch", "hf")
        scale = math.sqrt(self._image_area / (image.width * image.height))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        resized = image.convert("RGB").resize(size, _bicubic())
        height, width = resize_to_multiples(resized.height, resized.width, 8, *self._pixel_range)
        resized = resized.resize((width, height), _bicubic())
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
        pixels = (pixels.to(self._model.device).float() / 255 - 0.5) / 0.5
        with torch.no_grad():
            output = self._model.encode(pixels, torch.tensor([[height, width]]))
        return output.image_tokens[0].cpu().numpy().astype(np.int64)

    def decode(self, codes: np.ndarray) -> "Image":
        """See ``ImageTokenizer``."""
        torch = import_optional("torch", "hf")
        with torch.no_grad():
            ids = torch.from_numpy(codes.astype(np.int64)).to(self._model.device)
            pixels = self._model.decode(ids[None])[0].float().permute(1, 2, 0).cpu().numpy()
        pixels = ((pixels * 0.5 + 0.5) * 255).round().clip(0, 255).astype(np.uint8)
        return import_optional("PIL.Image", "hf").fromarray(pixels)


def resize_to_multiples(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return (height, width) near the given ones: multiples of ``factor``, area in the range.

    Raises:
        ValueError: a side is shorter than ``factor``, or one side is over 5 times the other.
    """
    if min(height, width) < factor or max(height, width) > 5 * min(height, width):
        raise ValueError(f"a picture of {width} x {height} is too narrow")
    rounded = round(height / factor) * factor, round(width / factor) * factor
    area = rounded[0] * rounded[1]
    if min_pixels <= area <= max_pixels:
        return rounded
    # Rounding away from the limit keeps the result inside it.
    limit, round_away = (max_pixels, math.floor) if area > max_pixels else (min_pixels, math.ceil)
    scale = math.sqrt(limit / (height * width)) / factor
    return round_away(height * scale) * factor, round_away(width * scale) * factor


def _cut_patches(pixels: np.ndarray, side: int) -> np.ndarray:
    """Cut ``[H, W, 3]`` into whole squares, row by row: ``[n, side * side * 3]``."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    pixels = pixels[: rows * side, : columns * side]
    squares = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return squares.reshape(rows * columns, -1)


def _bicubic() -> Any:
    return import_optional("PIL.Image", "demo").Resampling.BICUBIC
