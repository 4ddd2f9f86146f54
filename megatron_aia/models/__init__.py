"""Model families and presets by name. Adding a model is a folder and one line here.

Importing this package imports no model and no torch: the command line reads presets from it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from megatron_aia.config import Config

if TYPE_CHECKING:
    from megatron_aia.models.hugging_face import HFFormat
    from megatron_aia.models.spec import ModelSpec

_FAMILIES = {
    "emu3": "megatron_aia.models.emu3",
    "janus_pro": "megatron_aia.models.janus_pro",
}


def family_names() -> list[str]:
    """Return the registered model families."""
    return sorted(_FAMILIES)


def preset_table() -> dict[str, Callable[[], Config]]:
    """Return every preset of every family: name to a function that builds its configuration."""
    table: dict[str, Callable[[], Config]] = {}
    for path in _FAMILIES.values():
        table.update(import_module(f"{path}.presets").PRESETS)
    return table


def load_model_spec(family: str) -> ModelSpec:
    """Import a model family.

    Raises:
        ValueError: no such family.
    """
    if family not in _FAMILIES:
        raise ValueError(f"--model {family} is unknown; choose from {', '.join(family_names())}")
    return import_module(f"{_FAMILIES[family]}.model").SPEC


def load_hf_format(family: str) -> HFFormat:
    """Import what the converter needs of a model family.

    Raises:
        ValueError: no such family.
    """
    if family not in _FAMILIES:
        choices = ", ".join(family_names())
        raise ValueError(f"--model-type {family} is unknown; choose from {choices}")
    return import_module(f"{_FAMILIES[family]}.convert").FORMAT
