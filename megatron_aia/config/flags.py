"""Command lines from dataclasses of settings: every field is a flag."""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from megatron_aia.config.settings import REQUIRED, Setting, check_range, settings_of
from megatron_aia.config.value_types import from_words

_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
_Options = TypeVar("_Options")


class Parser(argparse.ArgumentParser):
    """A parser of flags in groups, whose errors are one line.

    Args:
        description: begins the help.
        prints: whether this process shows the help, or only stops where it was asked for.
        add_help: whether there is a flag for it.
    """

    def __init__(
        self, description: str | None = None, prints: bool = True, add_help: bool = True
    ) -> None:
        super().__init__(
            prog=Path(sys.argv[0]).name,
            usage="%(prog)s [flags]",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=add_help,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self._prints = prints
        self._settings: dict[str, Setting] = {}

    def add_settings(
        self,
        title: str,
        settings: Iterable[Setting],
        defaults: Mapping[str, Any],
        names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Add flags under a heading.

        Args:
            title: the heading.
            settings: the flags.
            defaults: that the help shows, by setting.
            names: that the help lists for a setting whose type is any text.
        """
        group = self.add_argument_group(title)
        for setting in settings:
            self._settings[setting.name] = setting
            text = f"{setting.help} ({_shown(defaults[setting.name])})".replace("%", "%%")
            if setting.kind.is_positional:
                group.add_argument(setting.name, nargs="*", default=[], help=text)
            elif setting.kind.base is bool:
                action = argparse.BooleanOptionalAction
                group.add_argument(setting.flag, dest=setting.name, action=action, help=text)
            else:
                group.add_argument(
                    setting.flag,
                    dest=setting.name,
                    nargs="*" if setting.kind.is_tuple else 1,
                    metavar=_metavar(setting, (names or {}).get(setting.name, ())),
                    help=text,
                )

    def read(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the settings that ``argv`` names and their values, and what is no setting.

        Raises:
            ValueError: a flag has no value, or one of another type.
        """
        given, unknown = self.parse_known_args(argv)
        values = {}
        for name, words in vars(given).items():
            setting = self._settings[name]
            is_read = isinstance(words, bool)
            values[name] = words if is_read else from_words(setting.flag, words, setting.kind)
        return values, unknown

    def error(self, message: str) -> NoReturn:
        """Raise in place of printing the usage."""
        raise ValueError(f"{message.removeprefix('argument ')}; see --help")

    def print_help(self, file: Any = None) -> None:
        """Show the help, on the one process that does."""
        if self._prints:
            super().print_help(file)


def with_dashes(argv: Sequence[str]) -> list[str]:
    """Return ``argv`` with the names of its flags written with dashes: ``--num_layers=2`` too."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        is_flag = name.startswith("--")
        words.append(name.replace("_", "-") + equals + value if is_flag else word)
    return words


def parse_options(
    cls: type[_Options],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    prints: bool = True,
) -> _Options:
    """Return a dataclass of a command's options, read from ``argv`` or the program's arguments.

    Of several processes with the same arguments, one ``prints`` the help.

    Raises:
        ValueError: an option is unknown, missing, out of range or of the wrong type; one line.
    """
    settings = settings_of(cls)
    parser = Parser(description, prints=prints)
    defaults = {name: setting.default for name, setting in settings.items()}
    parser.add_settings("options", settings.values(), defaults)
    values, unknown = parser.read(with_dashes(sys.argv[1:] if argv is None else argv))
    if unknown:
        raise ValueError(f"unknown option {unknown[0]}; see --help")
    for name, setting in settings.items():
        if setting.default is REQUIRED and name not in values:
            raise ValueError(f"{setting.flag} is required; see --help")
        check_range(setting, values.get(name))
    return cls(**values)


def _metavar(setting: Setting, names: Sequence[str]) -> str:
    kind = setting.kind
    choices = kind.choices or names
    shown = "{" + ",".join(choices) + "}" if choices else _METAVARS[kind.base]
    return f"none|{shown}" if kind.is_optional else shown


def _shown(default: Any) -> str:
    if default is REQUIRED:
        return "required"
    if isinstance(default, tuple):
        default = " ".join(map(str, default)) or "none given"
    if isinstance(default, bool):
        default = "on" if default else "off"
    return f"default: {'none' if default is None else default}"
