"""What a dataclass of settings says of its fields: type, range, help text."""

import ast
import inspect
import math
import textwrap
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from megatron_aia.config.value_types import ValueKind, kind_of

REQUIRED = object()
"""The default of a field that has none."""


@dataclass(frozen=True)
class Setting:
    """A field of a dataclass of settings."""

    name: str
    kind: ValueKind
    default: Any
    help: str
    """The string below the field, on one line."""
    owner: type
    """The class that brings the field in."""

    @property
    def flag(self) -> str:
        """Its command-line flag."""
        return flag(self.name)


def check_range(setting: Setting, value: Any) -> None:
    """Check that a value, or each of several, is in its setting's range.

    Raises:
        ValueError: naming flag, value and remedy.
    """
    allowed = setting.kind.range
    if allowed is None or value is None:
        return
    for part in value if isinstance(value, tuple) else (value,):
        # nan compares false with everything, inf passes `>= 0` and trains to nan
        if not (allowed.contains(part) and math.isfinite(part)):
            raise ValueError(f"{setting.flag} {part} is out of range; {allowed.remedy}")


def flag(field: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + field.replace("_", "-")


def settings_of(cls: type) -> dict[str, Setting]:
    """Return the fields of a dataclass of settings by their names."""
    return _read(cls)


@cache
def _read(cls: type) -> dict[str, Setting]:
    hints = get_type_hints(cls, include_extras=True)
    texts: dict[str, tuple[str, type]] = {}
    for owner in reversed(cls.__mro__[:-1]):
        # A field that is written again without a text keeps the one it had.
        texts |= {name: (text, owner) for name, text in _help_texts(owner).items()}
    settings = {}
    for field in fields(cls):
        default = REQUIRED if field.default is MISSING else field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        text, owner = texts.get(field.name, ("", cls))
        settings[field.name] = Setting(field.name, kind_of(hints[field.name]), default, text, owner)
    return settings


def _help_texts(cls: type) -> dict[str, str]:
    """Return the strings below the fields that stand in the body of ``cls`` itself."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # installed without sources: types and defaults are still there
        return {}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for node, following in zip(definition.body, definition.body[1:], strict=False):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[node.target.id] = " ".join(str(following.value.value).split())
    return texts
