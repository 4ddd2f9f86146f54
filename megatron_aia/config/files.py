"""YAML files and the AIA presets, laid over a configuration."""

import difflib
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from megatron_aia.config.tree import Config
from megatron_aia.config.yaml_file import load_mapping

AIA_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "aia_lambda_generation": 40.0,
        "aia_lambda_understanding": 40.0,
        "aia_profile": "paper",
        "aia_sets": "intended",
        "aia_count_inactive": False,
    },
    "paper_janus_pro": {
        "aia_lambda_generation": 40.0,
        "aia_lambda_understanding": 40.0,
        "aia_profile": "paper_janus_pro",
        "aia_sets": "intended",
        "aia_count_inactive": False,
    },
    "janus_released_code": {
        "aia_lambda_generation": 5.0,
        "aia_lambda_understanding": 10.0,
        "aia_profile": "released_code",
        "aia_sets": "released_code",
        "aia_count_inactive": True,
    },
}


def _group_of_fields() -> dict[str, str]:
    groups: dict[str, str] = {}
    for group in fields(Config):
        assert is_dataclass(group.type)
        for field in fields(group.type):
            assert field.name not in groups, f"two groups have a field {field.name}"
            groups[field.name] = group.name
    return groups


def _type_of_fields() -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for group in fields(Config):
        hints.update(get_type_hints(group.type))
    return hints


GROUP_OF_FIELD = _group_of_fields()
"""Every field of the tree and the name of its group, in the order of the tree."""

_TYPE_OF_FIELD = _type_of_fields()
_GROUPS = tuple(field.name for field in fields(Config))


def flag(field: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + field.replace("_", "-")


def value_of(config: Config, field: str) -> Any:
    """Return the value of a field, whatever its group."""
    return getattr(getattr(config, GROUP_OF_FIELD[field]), field)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy of ``config`` with the fields in ``values`` replaced."""
    by_group: dict[str, dict[str, Any]] = {}
    for field, value in values.items():
        by_group.setdefault(GROUP_OF_FIELD[field], {})[field] = value
    groups = {name: replace(getattr(config, name), **part) for name, part in by_group.items()}
    return replace(config, **groups)


def with_aia_preset(config: Config, name: str) -> Config:
    """Return a copy of ``config`` whose AIA group starts from the values of ``name``."""
    return with_values(config, {"aia_preset": name, **AIA_PRESETS[name]})


def did_you_mean(name: str, known: list[str]) -> str:
    """Return ``"; did you mean X?"`` for the nearest known name, or nothing if none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def read_yaml(path: str) -> dict[str, Any]:
    """Return the fields a YAML file sets, checked against the names and types of the tree.

    Keys are field names, flat (``lr: 1e-4``) or under their group (``training: {lr: 1e-4}``).

    Raises:
        ValueError: the file cannot be read, or a key or a value does not fit the tree.
    """
    content = load_mapping(path, f"--config {path}", "train_iters: 100")
    values: dict[str, Any] = {}
    for field, value in _flatten(path, content):
        if field in values:
            raise ValueError(f"--config {path}: {field} is set twice")
        try:
            values[field] = _coerce(value, _TYPE_OF_FIELD[field])
        except ValueError as error:
            raise ValueError(f"--config {path}: {field} must be {error}, not {value!r}") from error
    return values


def dump(config: Config) -> str:
    """Return the resolved configuration as YAML that ``--config`` reads back.

    The name of the file the run was given is left out: its values are all here already.
    """
    tree = asdict(config)
    del tree["run"]["config"]
    tree["data"]["data_path"] = list(config.data.data_path)
    return yaml.safe_dump(tree, sort_keys=False, width=1000)


def _flatten(path: str, content: dict[Any, Any]) -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in content.items():
        # `model` names a group and a field: a mapping can only mean the group.
        if key in _GROUPS and isinstance(value, dict):
            for field, nested in value.items():
                _check_key(path, field, inside=key)
                items.append((field, nested))
        else:
            _check_key(path, key)
            items.append((key, value))
    return items


def _check_key(path: str, key: Any, inside: str | None = None) -> None:
    if key == "config":
        raise ValueError(f"--config {path}: a file cannot name another file (key config)")
    if key not in GROUP_OF_FIELD:
        known = [*GROUP_OF_FIELD, *_GROUPS]
        raise ValueError(f"--config {path}: unknown key {key}{did_you_mean(str(key), known)}")
    if inside is not None and GROUP_OF_FIELD[key] != inside:
        raise ValueError(
            f"--config {path}: {key} belongs to the group {GROUP_OF_FIELD[key]}, not {inside}"
        )


def _coerce(value: Any, expected: Any) -> Any:
    """Return ``value`` as the ``expected`` type; the ValueError says what was expected."""
    if get_origin(expected) in (Union, types.UnionType):
        inner = next(part for part in get_args(expected) if part is not type(None))
        return None if value is None else _coerce(value, inner)
    if get_origin(expected) is Literal:
        if value not in get_args(expected):
            raise ValueError("one of " + ", ".join(map(str, get_args(expected))))
        return value
    if get_origin(expected) is tuple:
        entries = value if isinstance(value, list) else [value]
        return tuple(_coerce(entry, get_args(expected)[0]) for entry in entries)
    # A bool is an int to Python, but never what the writer of a number meant.
    is_bool = isinstance(value, bool)
    if expected is float and isinstance(value, int | float) and not is_bool:
        return float(value)
    if isinstance(value, expected) and is_bool == (expected is bool):
        return value
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    raise ValueError(names[expected])
