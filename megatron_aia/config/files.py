"""YAML files and the AIA presets, laid over a configuration."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_type_hints

import yaml

from megatron_aia.config.renames import modern_values
from megatron_aia.config.settings import Setting, settings_of
from megatron_aia.config.tree import Config, ModelConfig
from megatron_aia.config.value_types import as_kind
from megatron_aia.config.yaml_file import load_mapping

AIA_PRESETS: dict[str, Mapping[str, Any]] = {
    "paper": {
        "aia_lambda_generation": 40.0,
        "aia_lambda_understanding": 40.0,
        "aia_profile": "paper",
        "aia_query_key_sets": "paper",
        "aia_count_inactive": False,
    },
}


_GROUPS = tuple(field.name for field in fields(Config))


def settings_by_group(model: type[ModelConfig] = ModelConfig) -> dict[str, dict[str, Setting]]:
    """Return the settings of a configuration with such a model: group to field to setting."""
    classes: dict[str, type] = {**get_type_hints(Config), "model": model}
    return {name: settings_of(cls) for name, cls in classes.items()}


def group_of_fields(model: type[ModelConfig] = ModelConfig) -> dict[str, str]:
    """Return every field of a configuration and the name of its group, in the tree's order."""
    groups: dict[str, str] = {}
    for group, settings in settings_by_group(model).items():
        for field in settings:
            assert field not in groups, f"two groups have a field {field}"
            groups[field] = group
    return groups


GROUP_OF_FIELD = group_of_fields()
"""``group_of_fields`` of what all models share."""


def settings_by_name(config: Config) -> dict[str, Setting]:
    """Return every setting of a configuration by its name."""
    groups = settings_by_group(type(config.model))
    return {name: setting for settings in groups.values() for name, setting in settings.items()}


def value_of(config: Config, field: str) -> Any:
    """Return the value of a field, whatever its group."""
    return getattr(getattr(config, group_of_fields(type(config.model))[field]), field)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy of ``config`` with the fields in ``values`` replaced."""
    group_of = group_of_fields(type(config.model))
    by_group: dict[str, dict[str, Any]] = {}
    for field, value in values.items():
        by_group.setdefault(group_of[field], {})[field] = value
    groups = {name: replace(getattr(config, name), **part) for name, part in by_group.items()}
    return replace(config, **groups)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the nearest known name, or nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""


@dataclass(frozen=True)
class ConfigFile:
    """What a YAML file sets: field names to values as they stand there, of any type."""

    path: str
    values: dict[str, Any]
    groups: dict[str, str]
    """The group that a key stands under; keys may also stand flat."""
    notes: list[str]
    """On names of earlier versions."""

    def values_for(self, config: Config, elsewhere: Mapping[str, str]) -> dict[str, Any]:
        """Return the values, checked against the names and types of ``config``.

        Args:
            config: has the model family of the run.
            elsewhere: fields of other families, and their family. A file of an earlier version
                has some at 0: such a part is not there, and the key is left out.

        Raises:
            ValueError: a key or a value does not fit.
        """
        settings, group_of = settings_by_name(config), group_of_fields(type(config.model))
        values = {}
        for field, value in self.values.items():
            if field not in settings and field in elsewhere and not value:
                continue
            if field not in settings:
                raise ValueError(f"--config {self.path}: {_unknown(field, settings, elsewhere)}")
            group = self.groups.get(field, group_of[field])
            if group != group_of[field]:
                raise ValueError(
                    f"--config {self.path}: {field} belongs to the group {group_of[field]}, not "
                    f"{group}"
                )
            values[field] = as_kind(f"--config {self.path}: {field}", value, settings[field].kind)
        return values


def read_yaml(path: str) -> ConfigFile:
    """Read the fields a YAML file sets.

    Keys are field names, flat (``lr: 1e-4``) or under their group (``training: {lr: 1e-4}``).

    Raises:
        ValueError: the file cannot be read, or sets a field twice.
    """
    content = load_mapping(path, f"--config {path}", "train_iters: 100")
    values: dict[str, Any] = {}
    groups: dict[str, str] = {}
    for field, value, group in _flatten(content):
        if field == "config":
            raise ValueError(f"--config {path}: a file cannot name another file (key config)")
        if field in values:
            raise ValueError(f"--config {path}: {field} is set twice")
        values[field] = value
        if group:
            groups[field] = group
    values, notes = modern_values(values, f"--config {path}")
    return ConfigFile(path, values, groups, notes)


def dump(config: Config) -> str:
    """Return the resolved configuration as YAML that ``--config`` reads back.

    The name of the file the run was given is left out: its values are all here already.
    """
    tree = asdict(config)
    del tree["run"]["config"]
    tree["data"]["data_path"] = list(config.data.data_path)
    return yaml.safe_dump(tree, sort_keys=False, width=1000)


def _flatten(content: dict[Any, Any]) -> list[tuple[str, Any, str | None]]:
    items: list[tuple[str, Any, str | None]] = []
    for key, value in content.items():
        # `model` names a group and a field: a mapping can only mean the group.
        if key in _GROUPS and isinstance(value, dict):
            items += [(str(field), nested, key) for field, nested in value.items()]
        else:
            items.append((str(key), value, None))
    return items


def _unknown(field: str, settings: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    if field in elsewhere:
        return f"{field} is a setting of the model family {elsewhere[field]} only; leave it out"
    return f"unknown key {field}{did_you_mean(field, [*settings, *_GROUPS])}"
