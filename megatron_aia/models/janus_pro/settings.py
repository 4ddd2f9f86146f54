"""Janus-Pro's own settings, which are flags of this family only. No torch."""

from dataclasses import dataclass

from megatron_aia.config import Config, ModelConfig
from megatron_aia.config.settings import flag
from megatron_aia.config.validate_model import alternatives, check_split
from megatron_aia.config.value_types import PositiveInt


@dataclass
class JanusModelConfig(ModelConfig):
    """Architecture of Janus-Pro: the decoder, a tower for images to look at, image codes."""

    code_channels: PositiveInt = 8
    """Width of an image code before its aligner."""
    vision_num_layers: PositiveInt = 24
    """Layers of the tower for images to look at."""
    vision_hidden_size: PositiveInt = 1024
    """Width of the tower."""
    vision_ffn_hidden_size: PositiveInt = 4096
    """Width of the tower's MLP."""
    vision_num_attention_heads: PositiveInt = 16
    """Attention heads of the tower."""
    image_size: PositiveInt = 384
    """Side of an image, to look at or to draw, in pixels."""
    patch_size: PositiveInt = 16
    """Side of a patch in pixels; each gives one position of a sequence."""

    @property
    def image_slots(self) -> int:
        """Positions that an image to look at takes in a sequence."""
        return (self.image_size // self.patch_size) ** 2


def janus_model(config: Config) -> JanusModelConfig:
    """Return the model of a configuration of this family."""
    assert isinstance(config.model, JanusModelConfig), type(config.model)
    return config.model


def check(config: Config) -> None:
    """Check the sizes of the tower, and that tensor parallelism divides them.

    Raises:
        ValueError: naming flag, value and remedy.
    """
    model = janus_model(config)
    for name, divisor in (
        ("image_size", "patch_size"),
        ("vision_hidden_size", "vision_num_attention_heads"),
    ):
        size, part = getattr(model, name), getattr(model, divisor)
        if size % part:
            raise ValueError(
                f"{flag(divisor)} {part} does not divide {flag(name)} {size}; use "
                f"{alternatives(size)}"
            )
    check_split(config, ("hidden_size", "vision_num_attention_heads", "vision_ffn_hidden_size"))
