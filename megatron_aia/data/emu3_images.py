"""Emu3's image tokeniser: 8 x 8 pixels a code, any shape of picture."""

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_aia.runtime.optional import import_optional

if TYPE_CHECKING:
    from PIL.Image import Image

EMU3_IMAGE_AREA = 720 * 720
_FACTOR = 8
"""Side of a code in pixels."""


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
        self.fingerprint = f"{self.name}|{image_area}|{min_pixels}|{max_pixels}"

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
            # Not by AutoConfig, which knows the tokeniser alone in late versions only.
            document = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
            document = document.get("vq_config", document)
            if document.get("model_type") != "emu3_vqgan":
                raise ValueError(f"its model_type is {document.get('model_type')}")
            config = transformers.Emu3VQVAEConfig(**document)
            model, report = transformers.Emu3VQVAE.from_pretrained(
                path,
                config=config,
                key_mapping={r"^(model\.)?vqmodel\.": ""},
                output_loading_info=True,
                local_files_only=True,
            )
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
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

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """See ``ImageTokenizer``."""
        _, (width, height) = self._sizes(width, height)
        return height // _FACTOR, width // _FACTOR

    def _sizes(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (width, height) at the image area, and then as multiples of a code's side."""
        scale = math.sqrt(self._image_area / (width * height))
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
        multiples = resize_to_multiples(height, width, _FACTOR, *self._pixel_range)
        return (width, height), (multiples[1], multiples[0])

    def encode(self, image: "Image") -> np.ndarray:
        """See ``ImageTokenizer``."""
        torch = import_optional("torch", "hf")
        bicubic = import_optional("PIL.Image", "hf").Resampling.BICUBIC
        at_area, (width, height) = self._sizes(image.width, image.height)
        resized = image.convert("RGB").resize(at_area, bicubic).resize((width, height), bicubic)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None]
        pixels = (pixels.to(self._model.device).float() / 255 - 0.5) / 0.5
        with torch.no_grad():
            output = self._model.encode(pixels, torch.tensor([[height, width]]))
        codes = getattr(output, "image_tokens", output)[0]  # Transformers 4 returns the codes
        return codes.cpu().numpy().astype(np.int64)

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
