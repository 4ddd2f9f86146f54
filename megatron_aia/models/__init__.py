"""The model families of the table in ``config.families``.

Importing this package imports no model's network and no torch: the command line reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from megatron_aia.config import Config, ModelConfig
from megatron_aia.config.families import DEFAULT_FAMILY, FAMILIES
from megatron_aia.config.files import AIA_PRESETS, read_yaml, with_values
from megatron_aia.config.settings import settings_of

if TYPE_CHECKING:
    from megatron_aia.models.family import ModelFamily, Preset
    from megatron_aia.models.hugging_face import HFFormat
    from megatron_aia.models.spec import ModelSpec


def family_names() -> list[str]:
    """Return the registered model families."""
    return sorted(FAMILIES)


def load_family(name: str, flag: str = "--model") -> ModelFamily:
    """Import a model family.

    Raises:
        ValueError: no such family; ``flag`` named it.
    """
    if name not in FAMILIES:
        raise ValueError(f"{flag} {name} is unknown; choose from {', '.join(family_names())}")
    family: ModelFamily = import_module(FAMILIES[name]).FAMILY
    if family.name != name:
        raise ValueError(f"{FAMILIES[name]} is of the family {family.name}, not {name}")
    return family


def families() -> list[ModelFamily]:
    """Return all families, the default one first.

    Raises:
        ValueError: two of them have a preset of one name.
    """
    found = [load_family(name) for name in FAMILIES]
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


def build_preset(name: str) -> Config:
    """Return the configuration of a preset.

    Raises:
        ValueError: no such preset, or it sets what no setting is.
    """
    table = preset_table()
    if name not in table:
        *others, last = sorted(table)
        raise ValueError(f"unknown --preset {name}; use {', '.join(others)} or {last}")
    try:
        return table[name].build()
    except TypeError as error:  # of a dataclass of settings
        raise ValueError(f"the preset {name} cannot be built: {error}") from error


def check_family(config: Config) -> None:
    """Check what a configuration's family asks for, and its preset of the user.

    Raises:
        ValueError: naming flag, value and remedy.
    """
    preset = preset_table().get(config.run.preset)
    needs = preset.needs if preset else frozenset()
    missing = []
    if "data" in needs and not config.data.data_path:
        missing.append("--data-path (shards written by tools/build_shards.py)")
    start = config.checkpoint.load or config.checkpoint.pretrained_checkpoint
    if "weights" in needs and start is None:
        missing.append("--load (a checkpoint to start from)")
    if missing:
        raise ValueError(f"preset {config.run.preset} needs " + " and ".join(missing))
    load_family(config.model.model).check(config)


def aia_preset_table() -> dict[str, Mapping[str, Any]]:
    """Return the values of every ``--aia-preset``, the general ones and those of the families."""
    found = dict(AIA_PRESETS)
    for family in families():
        found |= family.aia_presets
    return found


def with_aia_preset(config: Config, name: str) -> Config:
    """Return a copy of ``config`` whose AIA group starts from the values of a preset.

    Raises:
        ValueError: no such preset.
    """
    table = aia_preset_table()
    if name not in table:
        raise ValueError(f"unknown --aia-preset {name}; choose from {', '.join(sorted(table))}")
    return with_values(config, {"aia_preset": name, **table[name]})


def fields_of_families() -> dict[str, str]:
    """Return the settings that only some family has, and that family."""
    owners: dict[str, str] = {}
    for family in families():
        for field, setting in settings_of(family.model_config).items():
            if setting.owner is not ModelConfig:
                owners.setdefault(field, family.name)
    return owners


def read_run_config(path: str) -> Config:
    """Return the configuration in a YAML file that a run has written.

    Raises:
        ValueError: it cannot be read, or a key or a value does not fit its model family.
    """
    file = read_yaml(path)
    family = load_family(str(file.values.get("model", DEFAULT_FAMILY)))
    config = Config(model=family.model_config(model=family.name))
    return with_values(config, file.values_for(config, fields_of_families()))


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


def family_of_model_type(model_type: object) -> str | None:
    """Return the family whose checkpoints have this ``model_type`` in their config.json."""
    for family in family_names():
        if model_type in load_hf_format(family).model_types:
            return family
    return None


@contextmanager
def extra_family(name: str, module: str) -> Iterator[None]:
    """Register a family of another package while the statement runs.

    Raises:
        ValueError: there is a family of that name.
    """
    if name in FAMILIES:
        raise ValueError(f"there is a model family {name} already ({FAMILIES[name]})")
    FAMILIES[name] = module
    try:
        yield
    finally:
        del FAMILIES[name]
