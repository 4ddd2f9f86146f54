"""Emu3's image tokeniser: 8 x 8 pixels a code, any shape of picture."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_aia.models.weight_files import read_tensors
from megatron_aia.runtime.optional import import_optional

if TYPE_CHECKING:
    from PIL.Image import Image

EMU3_IMAGE_AREA = 720 * 720
ORIGINAL_TYPE = "Emu3VisionVQ"
"""``model_type`` of the authors' own folder."""
_FACTOR = 8
"""Side of a code in pixels."""
_SIZES = {
    "codebook_size": "codebook_size",
    "embed_dim": "embed_dim",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "temporal_downsample_factor": "temporal_downsample_factor",
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions",
}
"""Sizes in the authors' config.json, and in that of transformers."""
_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_RENAMES = (
    (r"^encoder\.down\.", "encoder.down_block.down."),
    (r"^decoder\.up\.", "decoder.up_block.up."),
    (r"^(encoder|decoder)\.mid\.", r"\1.middle_block."),
    (r"\.attn_1\.norm\.", ".attn_norm."),
    (r"\.attn\.(\d+)\.norm\.", r".attn_norms.\1."),
    (r"(\.attn(?:_1|\.\d+))\.([qkv])\.", r"\1.\2_proj."),
    (r"(\.attn(?:_1|\.\d+))\.proj_out\.", r"\1.out_proj."),
)


class Emu3Quantizer:
    """Emu3's image tokeniser, by the network of transformers; 8 x 8 pixels a code.

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
        cls, path: str | Path, image_area: int | None = None, device: str = "cpu"
    ) -> "Emu3Quantizer":
        """Load the image tokeniser of a local folder, in Transformers' form or the authors'.

        The folder holds the tokeniser alone (``Emu3-VisionTokenizer``) or a whole Emu3 (as
        ``Emu3-Chat-hf``), whose other weights are not loaded. ``preprocessor_config.json`` may set
        min_pixels and max_pixels.

        Args:
            path: the folder.
            image_area: see the class; that of Emu3's training when unset.
            device: torch device.

        Raises:
            ValueError: no such model is there, or some of its weights are missing.
        """
        path = Path(path)
        try:
            # Not by AutoConfig, which knows the tokeniser alone in late versions only.
            document = json.loads((path / "config.json").read_text(encoding="utf-8"))
            if document.get("model_type") == ORIGINAL_TYPE:
                model = _load_original(path, document)
            else:
                model = _load_transformers(path, document.get("vq_config", document))
            settings_file = path / "preprocessor_config.json"
            settings = json.loads(settings_file.read_text()) if settings_file.is_file() else {}
        except Exception as error:  # a wrong folder raises what transformers likes
            raise ValueError(f"{path} holds no Emu3 image tokeniser: {error}") from error
        min_pixels = settings.get("min_pixels", 512 * 512)
        max_pixels = settings.get("max_pixels", 1024 * 1024)
        area = image_area or EMU3_IMAGE_AREA
        return cls(model.to(device), area, min_pixels, max_pixels)

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


def _load_transformers(path: Path, document: dict[str, Any]) -> Any:
    """Load the network from a folder that transformers wrote.

    Raises:
        ValueError: it is another model, or some of its weights are missing.
    """
    transformers = import_optional("transformers", "hf")
    if document.get("model_type") != "emu3_vqgan":
        raise ValueError(f"its model_type is {document.get('model_type')}")
    model, report = transformers.Emu3VQVAE.from_pretrained(
        path,
        config=transformers.Emu3VQVAEConfig(**document),
        key_mapping={r"^(model\.)?vqmodel\.": ""},
        output_loading_info=True,
        local_files_only=True,
    )
    if report["missing_keys"]:
        raise ValueError(f"it lacks weights: {sorted(report['missing_keys'])[:3]} ...")
    return model


def _load_original(path: Path, document: dict[str, Any]) -> Any:
    """Load the network from the authors' ``Emu3-VisionTokenizer``.

    Raises:
        ValueError: some of its weights are missing.
    """
    transformers = import_optional("transformers", "hf")
    sizes = {ours: document[theirs] for theirs, ours in _SIZES.items() if theirs in document}
    config = transformers.Emu3VQVAEConfig(**sizes)
    # Attention is as wide as the level it stands in, the last one.
    config.hidden_size = config.base_channels * config.channel_multiplier[-1]
    model = transformers.Emu3VQVAE(config)
    weights = read_tensors(path, to_transformers_name)
    expected = model.state_dict()
    if lacking := sorted(expected.keys() - weights.keys()):
        raise ValueError(f"it lacks weights: {lacking[:3]} ...")
    # The authors' projections in attention are convolutions of 1 x 1, which have the same numbers.
    fitted = {name: weights[name].reshape(tensor.shape) for name, tensor in expected.items()}
    model.load_state_dict(fitted)
    return model


def to_transformers_name(name: str) -> str | None:
    """Return transformers' name of a tensor of the authors' network, None for any other tensor."""
    if not name.startswith(_PARTS):
        return None
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


load = Emu3Quantizer.from_folder
