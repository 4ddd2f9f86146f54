"""The table of model families. Adding a model is a folder and one line here."""

FAMILIES = {
    "emu3": "megatron_aia.models.emu3.family",
    "janus_pro": "megatron_aia.models.janus_pro.family",
    "unifork": "megatron_aia.models.unifork.family",
}
"""Name of a family, as ``--model`` takes it, to the module with its ``FAMILY``."""

DEFAULT_FAMILY = next(iter(FAMILIES))
"""The first line."""
