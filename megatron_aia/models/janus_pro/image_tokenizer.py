"""Janus-Pro's tokeniser of images to draw: 16 x 16 pixels a code, always a square."""

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_aia.models.janus_pro.vq_names import CODEBOOK_COUNTER, to_transformers
from megatron_aia.models.weight_files import read_tensors
from megatron_aia.runtime.optional import import_optional
from megatron_aia.shards.pictures import crop_to_square

if TYPE_CHECKING:
    from PIL.Image import Image

JANUS_IMAGE_AREA = 384 * 384
_NAME = re.compile(
    r"(?:gen_vision_model\.|(?:model\.)?vqmodel\.)?"
    r"((?:encoder|decoder|quantize|quant_conv|post_quant_conv)\..+)"
)
"""A tensor of the VQ model: in the authors' checkpoint, in transformers' Janus, or alone."""


class JanusQuantizer:
    """Janus-Pro's VQ-16. Build it with ``from_folder``.

    The network is that of transformers, the search for the nearest code is not: Janus-Pro compares
    directions, both sides divided by their length, and transformers compares points. On a codebook
    whose rows differ in length the two choose different codes.
    """

    def __init__(self, model: Any, side: int) -> None:
        self._model = model.eval()
        self._side = side
        rows = model.quantize.embedding.weight.detach().float()
        self.codebook_size: int = len(rows)
        self._directions = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.name = f"janus_vq-{hashlib.sha256(rows.cpu().numpy().tobytes()).hexdigest()[:12]}"
        self.fingerprint = f"{self.name}|{side}"

    @classmethod
    def from_folder(
        cls, path: str | Path, image_area: int | None = None, device: str = "cpu"
    ) -> "JanusQuantizer":
        """Load the tokeniser of a local folder in the authors' form or in that of transformers.

        The folder may hold a whole Janus-Pro, whose other weights are not loaded. The sizes of the
        network are those of its weights.

        Args:
            path: the folder.
            image_area: pixels of the square that is encoded; Janus-Pro's own when unset.
            device: torch device.

        Raises:
            ValueError: no such weights are there or some are missing, or no square of whole codes
                has ``image_area`` pixels.
        """
        transformers = import_optional("transformers", "hf")
        weights = _read_weights(Path(path))
        try:
            sizes = _sizes(weights)
        except KeyError as error:
            raise ValueError(f"{path} lacks weights: {error} ...") from None
        factor = _factor_of(sizes["channel_multiplier"])
        side = _side_of(image_area or JANUS_IMAGE_AREA, factor)
        config = transformers.JanusVQVAEConfig(num_patches=side // factor, **sizes)
        model = transformers.JanusVQVAE(config)
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        found = {name: tensor.shape for name, tensor in weights.items()}
        if lacking := sorted(expected.items() - found.items()):
            raise ValueError(f"{path} lacks weights: {[name for name, _ in lacking[:3]]} ...")
        model.load_state_dict({name: weights[name] for name in expected})
        return cls(model.to(device), side)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """See ``ImageTokenizer``."""
        codes = self._side // _factor_of(self._model.config.channel_multiplier)
        return codes, codes

    def encode(self, image: "Image") -> np.ndarray:
        """See ``ImageTokenizer``."""
        torch = import_optional("torch", "hf")
        square = np.array(crop_to_square(image.convert("RGB"), self._side))
        pixels = torch.from_numpy(square).permute(2, 0, 1)[None].to(self._model.device)
        return self.encode_pixels((pixels.float() / 255 - 0.5) / 0.5)[0]

    def encode_pixels(self, pixels: Any) -> np.ndarray:
        """Return int64 codes ``[n, h, w]`` of a float tensor ``[n, 3, H, W]`` in [-1, 1]."""
        torch = import_optional("torch", "hf")
        with torch.no_grad():
            points = self._model.quant_conv(self._model.encoder(pixels))
            # The length of a point does not change which direction is nearest.
            likeness = torch.einsum("nchw,kc->nhwk", points, self._directions)
            return likeness.argmax(-1).cpu().numpy()

    def decode(self, codes: np.ndarray) -> "Image":
        """See ``ImageTokenizer``."""
        torch = import_optional("torch", "hf")
        with torch.no_grad():
            ids = torch.from_numpy(codes.astype(np.int64)).to(self._model.device)
            points = self._directions[ids].permute(2, 0, 1)[None]
            pixels = self._model.decoder(self._model.post_quant_conv(points))[0]
        pixels = ((pixels.permute(1, 2, 0) * 0.5 + 0.5) * 255).round().clamp(0, 255)
        image_module = import_optional("PIL.Image", "hf")
        return image_module.fromarray(pixels.cpu().numpy().astype(np.uint8))


def _factor_of(channel_multiplier: Sequence[int]) -> int:
    """Return the side of a code in pixels: every level but the last halves a picture."""
    return 2 ** (len(channel_multiplier) - 1)


def _side_of(image_area: int, factor: int) -> int:
    side = math.isqrt(image_area)
    if side * side != image_area or side % factor or not side:
        raise ValueError(
            f"--image-area {image_area} is no square of whole codes of {factor} x {factor} pixels; "
            f"{JANUS_IMAGE_AREA} is Janus-Pro's own"
        )
    return side


def _sizes(weights: dict[str, Any]) -> dict[str, Any]:
    """Read the sizes of the network off its weights, in the names of transformers' config."""
    base = len(weights["encoder.conv_in.weight"])
    levels = max(1, _count(weights, r"encoder\.down\.(\d+)\."))
    widths = [len(weights[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(levels)]
    codebook_size, channels = weights["quantize.embedding.weight"].shape
    return {
        "embed_dim": channels,
        "num_embeddings": codebook_size,
        "latent_channels": weights["quant_conv.weight"].shape[1],
        "base_channels": base,
        "channel_multiplier": [width // base for width in widths],
        "num_res_blocks": _count(weights, r"encoder\.down\.0\.block\.(\d+)\."),
    }


def _count(weights: dict[str, Any], pattern: str) -> int:
    """Return how many numbers stand at the place of the group in the names."""
    return len({match[1] for name in weights if (match := re.match(pattern, name))})


def _read_weights(folder: Path) -> dict[str, Any]:
    """Return the tensors of the VQ model, fp32, under transformers' names.

    Raises:
        ValueError: there are none, or a file cannot be read.
    """
    weights = read_tensors(folder, _our_name)
    if not weights:
        raise ValueError(
            f"{folder} holds no image tokeniser of Janus-Pro: expected tensors gen_vision_model.* "
            "or vqmodel.* in *.safetensors or pytorch_model*.bin"
        )
    return weights


def _our_name(name: str) -> str | None:
    """Return transformers' name of a tensor of the VQ model, None for any other tensor."""
    match = _NAME.fullmatch(name)
    if match is None or match[1] == CODEBOOK_COUNTER:
        return None
    return to_transformers(match[1])


load = JanusQuantizer.from_folder
