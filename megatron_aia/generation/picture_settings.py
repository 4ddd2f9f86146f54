"""How pictures are drawn, and a prompt with its picture as tokens."""

from dataclasses import dataclass
from typing import TypeVar

from megatron_aia.generation.drawing import Guidance
from megatron_aia.generation.options import DrawingOptions
from megatron_aia.generation.prompts import Prompt
from megatron_aia.generation.sampling import Sampling
from megatron_aia.models.inference import Drawing, Inference

_T = TypeVar("_T")


@dataclass(frozen=True)
class PictureSettings:
    """How all pictures of a command are drawn."""

    guidance: Guidance
    negative_prompt: str | None
    prompt_suffix: str
    ratio: str
    image_area: int
    seed: int

    @classmethod
    def resolve(cls, options: DrawingOptions, inference: Inference, seed: int) -> "PictureSettings":
        """Take the family's value for what the user leaves open."""
        defaults = inference.defaults
        sampling = Sampling(
            _given(options.temperature, defaults.temperature),
            _given(options.top_k, defaults.top_k),
            _given(options.top_p, defaults.top_p),
        )
        return cls(
            Guidance(_given(options.guidance_scale, defaults.guidance_scale), sampling),
            _given(options.negative_prompt, defaults.negative_prompt),
            _given(options.prompt_suffix, defaults.prompt_suffix),
            options.ratio,
            _given(options.image_area, defaults.image_area),
            seed,
        )

    def describe(self) -> dict[str, object]:
        """Return every value by the name of its flag."""
        sampling = self.guidance.sampling
        return {
            "guidance_scale": self.guidance.scale,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "negative_prompt": self.negative_prompt,
            "prompt_suffix": self.prompt_suffix,
            "ratio": self.ratio,
            "image_area": self.image_area,
            "seed": self.seed,
        }


def _given(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def write_drawing(
    inference: Inference, settings: PictureSettings, asked: Prompt, context: int
) -> Drawing:
    """Write a prompt as tokens.

    Args:
        inference: of the family.
        settings: where the prompt says nothing itself.
        asked: the prompt.
        context: tokens that the model takes.

    Raises:
        ValueError: prompt and picture do not fit the context, or the model draws no such picture.
    """
    area = _given(asked.image_area, settings.image_area)
    grid = inference.grid(_given(asked.ratio, settings.ratio), area)
    words = asked.prompt + _given(asked.prompt_suffix, settings.prompt_suffix)
    negative = asked.negative_prompt
    negative = settings.negative_prompt if negative is None else negative
    drawing = inference.drawing(words, negative, grid)
    longest = max(len(drawing.prompt), len(drawing.unguided))
    if longest + drawing.steps > context:
        raise ValueError(
            f"a prompt of {longest} tokens and a picture of {drawing.steps} are more than the "
            f"model's {context} (--max-position-embeddings); shorten {asked.prompt[:40]!r} or "
            "lower --image-area"
        )
    return drawing
