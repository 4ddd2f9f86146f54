"""UniFork's own settings, which are flags of this family only. No torch."""

from dataclasses import dataclass

from megatron_aia.config import Config, ModelConfig
from megatron_aia.config.settings import flag
from megatron_aia.config.validate_model import alternatives, check_split
from megatron_aia.config.value_types import NonNegativeInt, PositiveInt


@dataclass
class UniForkModelConfig(ModelConfig):
    """Architecture of UniFork: a decoder that forks by task, residual image codes, a head for
    them."""

    num_shared_layers: NonNegativeInt = 12
    """Lower layers that both tasks pass; each task has layers of its own above them. 0 forks at
    once, --num-layers shares all but the last norm."""
    code_depth: PositiveInt = 4
    """Residual codes of an image token, one after the other from one codebook."""
    code_channels: PositiveInt = 1024
    """Width of a code's vector; that of an image token is the sum of its codes' vectors."""
    image_size: PositiveInt = 384
    """Side of an image in pixels, to look at or to draw."""
    patch_size: PositiveInt = 16
    """Side of an image token in pixels."""
    depth_num_layers: PositiveInt = 6
    """Layers of the head that predicts the codes of an image token."""
    depth_attention_size: PositiveInt = 3584
    """Width of all attention heads of a layer of that head together."""
    depth_num_attention_heads: PositiveInt = 32
    """Attention heads of a layer of that head."""
    depth_ffn_hidden_size: PositiveInt = 3584
    """Width of the MLP of a layer of that head."""

    @property
    def grid(self) -> int:
        """Image tokens along a side of an image."""
        return self.image_size // self.patch_size


def unifork_model(config: Config) -> UniForkModelConfig:
    """Return the model of a configuration of this family."""
    assert isinstance(config.model, UniForkModelConfig), type(config.model)
    return config.model


def check(config: Config) -> None:
    """Check where the model forks, sizes of images and head, and what tensor parallelism divides.

    Raises:
        ValueError: naming flag, value and remedy.
    """
    model = unifork_model(config)
    if model.num_shared_layers > model.num_layers:
        raise ValueError(
            f"--num-shared-layers {model.num_shared_layers} is more than --num-layers "
            f"{model.num_layers}; use 0 to {model.num_layers}"
        )
    for name, divisor in (
        ("image_size", "patch_size"),
        ("depth_attention_size", "depth_num_attention_heads"),
    ):
        size, part = getattr(model, name), getattr(model, divisor)
        if size % part:
            raise ValueError(
                f"{flag(divisor)} {part} does not divide {flag(name)} {size}; use "
                f"{alternatives(size)}"
            )
    if model.codebook_size**model.code_depth >= 1 << 62:
        raise ValueError(
            f"--codebook-size {model.codebook_size} to the power of --code-depth "
            f"{model.code_depth} is no 62-bit number, which an image token has to be; use less"
        )
    check_split(config, ("depth_num_attention_heads", "depth_ffn_hidden_size"))
