"""Janus-Pro as the rest of the code knows it. Standard library only."""

from megatron_aia.models.family import ModelFamily
from megatron_aia.models.janus_pro.presets import PRESETS

FAMILY = ModelFamily(
    name="janus_pro",
    package="megatron_aia.models.janus_pro",
    presets=PRESETS,
    demo_preset="janus_demo",
)
