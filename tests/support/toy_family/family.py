"""The toy family as the rest of the code knows it."""

from dataclasses import dataclass

from megatron_aia.config import Config, ModelConfig, RunConfig
from megatron_aia.config.value_types import NonNegativeFloat, PositiveInt
from megatron_aia.models.family import ModelFamily, Preset


@dataclass
class ToyModelConfig(ModelConfig):
    """A decoder with one matrix in and out, and a head for vectors."""

    vector_size: PositiveInt = 3
    """Width of what the second head predicts in the place of an image code."""
    vector_loss_weight: NonNegativeFloat = 2.0
    """Weight of the regression."""
    teacher_loss_weight: NonNegativeFloat = 0.5
    """Weight of the divergence from the teacher; 0 asks for none."""


def toy() -> Config:
    """Return the only preset."""
    return Config(
        run=RunConfig(preset="toy_demo"),
        model=ToyModelConfig(
            model="toy",
            num_layers=4,
            hidden_size=32,
            ffn_hidden_size=48,
            num_attention_heads=4,
            num_query_groups=2,
            max_position_embeddings=256,
            text_vocab_size=256,
            codebook_size=24,
            init_method_std=0.2,
            make_vocab_size_divisible_by=8,
            add_qkv_bias=True,
            untie_embeddings_and_output_weights=False,
        ),
    )


FAMILY = ModelFamily(
    name="toy",
    package="support.toy_family",
    presets={"toy_demo": Preset(toy)},
    demo_preset="toy_demo",
    model_config=ToyModelConfig,
)
