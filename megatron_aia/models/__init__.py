"""The table of model families. Adding a model is a folder and one line here.

Importing this package imports no model's network and no torch: the command line reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_aia.models.family import ModelFamily, Preset
    from megatron_aia.models.hugging_face import HFFormat
    from megatron_aia.models.spec import ModelSpec

_MODULES = {
    "emu3": "megatron_aia.models.emu3.family",
    "janus_pro": "megatron_aia.models.janus_pro.family",
}
"""Family to the module with its ``FAMILY``; the first is the default."""


def family_names() -> list[str]:
    """Return the registered model families."""
    return sorted(_MODULES)


def load_family(name: str, flag: str = "--model") -> ModelFamily:
    """Import a model family.

    Raises:
        ValueError: no such family; ``flag`` named it.
    """
    if name not in _MODULES:
        raise ValueError(f"{flag} {name} is unknown; choose from {', '.join(family_names())}")
    family: ModelFamily = import_module(_MODULES[name]).FAMILY
    if family.name != name:
        raise ValueError(f"{_MODULES[name]} is of the family {family.name}, not {name}")
    return family


def families() -> list[ModelFamily]:
    """Return all families, the default one first.

    Raises:
        ValueError: two of them have a preset of one name.
    """
    found = [load_family(name) for name in _MODULES]
    owners: dict[str, str] = {}
    for family in found:
        for preset in family.presets:
            if preset in owners:
                raise ValueError(
                    f"the families {owners[preset]} and {family.name} both have a preset "
                    f"{preset}; rename one"
                )
            owners[preset] = family.name
    return found


def preset_table() -> dict[str, Preset]:
    """Return every preset of every family by its name."""
    return {name: preset for family in families() for name, preset in family.presets.items()}


def load_model_spec(family: str) -> ModelSpec:
    """Import how a family is built, run and trained.

    Raises:
        ValueError: no such family.
    """
    return load_family(family).spec()


def load_hf_format(family: str) -> HFFormat:
    """Import what the converter needs of a family.

    Raises:
        ValueError: no such family.
    """
    return load_family(family, flag="--model-type").hugging_face()


@contextmanager
def extra_family(name: str, module: str) -> Iterator[None]:
    """Register a family of another package while the statement runs.

    Raises:
        ValueError: there is a family of that name.
    """
    if name in _MODULES:
        raise ValueError(f"there is a model family {name} already ({_MODULES[name]})")
    _MODULES[name] = module
    try:
        yield
    finally:
        del _MODULES[name]
