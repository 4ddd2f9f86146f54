"""How Emu3 draws and answers."""

import math
from typing import Any

from torch import Tensor

from megatron_aia.models.emu3.sample_encoder import Emu3SampleEncoder
from megatron_aia.models.inference import RATIOS, DrawingDefaults, Inference

_CODE_SIDE = 8
"""Pixels."""

DEFAULTS = DrawingDefaults(
    guidance_scale=3.0,
    top_k=2048,
    prompt_suffix=" masterpiece, film grained, best quality.",
    negative_prompt=(
        "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, "
        "cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, "
        "watermark, username, blurry."
    ),
    image_area=720 * 720,
)
"""Those of the authors' image_generation.py, with Emu3-Gen's area."""


class Emu3Inference(Inference):
    """Any grid of codes, whose row ends are forced; answers from the whole vocabulary."""

    encoder: Emu3SampleEncoder

    def __init__(self, encoder: Emu3SampleEncoder) -> None:
        super().__init__(encoder)
        ids = encoder.vocabulary
        self.defaults = DEFAULTS
        self.code_ids = range(ids.first_visual, ids.size)
        self.answer_ids = range(ids.size)
        self.text_ids = range(ids.text_size)
        self.stop_ids = (ids.eos,)

    def grid(self, ratio: str, image_area: int) -> tuple[int, int]:
        """See ``Inference``; sides as in the authors' processor."""
        if ratio not in RATIOS:
            raise ValueError(f"--ratio {ratio} is unknown; use one of {', '.join(RATIOS)}")
        width, height = map(int, ratio.split(":"))
        scale = math.sqrt(image_area / (width * height)) / _CODE_SIDE
        grid = round(height * scale), round(width * scale)
        if min(grid) < 1:
            raise ValueError(f"--image-area {image_area} holds no code of 8 x 8 pixels; raise it")
        return grid

    def code_logits(self, model: Any, hidden: Tensor) -> Tensor:
        """See ``Inference``."""
        logits: Tensor = model.vocabulary_logits(hidden, self.code_ids)
        return logits
