"""Emu3 as the rest of the code knows it. Standard library only."""

from megatron_aia.models.emu3.presets import PRESETS
from megatron_aia.models.family import ModelFamily

FAMILY = ModelFamily(
    name="emu3",
    package="megatron_aia.models.emu3",
    presets=PRESETS,
    demo_preset="emu3_demo",
)
