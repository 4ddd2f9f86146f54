"""The command line: preset, YAML file and flags become one configuration."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_aia.config import Config, fit_layout
from megatron_aia.config.files import (
    ConfigFile,
    did_you_mean,
    read_yaml,
    settings_by_group,
    settings_by_name,
    value_of,
    with_values,
)
from megatron_aia.config.flags import Parser, with_dashes
from megatron_aia.config.give_way import give_way
from megatron_aia.config.megatron_lm import answer
from megatron_aia.config.renames import modern_argv
from megatron_aia.config.settings import flag
from megatron_aia.models import (
    aia_preset_table,
    build_preset,
    families,
    family_names,
    fields_of_families,
    load_family,
    preset_table,
    with_aia_preset,
)

_DESCRIPTION = """Train a unified multimodal model with the AIA loss.

Values come from --preset, then from --config, then from flags.
--check: validate the settings and exit."""

_SECONDS_FOR_RANK_0 = 10


@dataclass(frozen=True)
class CommandLine:
    """What a command line asks for."""

    config: Config
    """Not yet validated."""
    notes: list[str]
    """A line for every name of an earlier version, and every value of a preset that gave way."""


def parse(
    argv: Sequence[str], *, default_preset: str | None = None, world_size: int | None = None
) -> Config:
    """Return the configuration of ``parse_with_notes``."""
    return parse_with_notes(argv, default_preset=default_preset, world_size=world_size).config


def parse_with_notes(
    argv: Sequence[str], *, default_preset: str | None = None, world_size: int | None = None
) -> CommandLine:
    """Return what a command line asks for.

    Values come from the preset, then the YAML file, then the flags. An AIA preset sets its values
    just below the other keys of the place that names it, file or flags. A value of the preset
    that contradicts a given one gives way.

    Args:
        argv: the arguments, without the program's name.
        default_preset: the preset when neither flags nor file name one.
        world_size: processes of the run, to fit the layout to; ``None`` leaves it as written.

    Raises:
        ValueError: an argument or the file cannot be understood; one line with a remedy.
    """
    argv, notes = modern_argv(with_dashes(argv))
    early = _read_early(argv)
    path = early.get("config")
    file = ConfigFile("", {}, {}, []) if path is None else read_yaml(path)
    named = {**file.values, **early}
    config = _preset(named, default_preset)
    from_file = file.values_for(config, fields_of_families())
    config = _lay_over(config, {**from_file, "preset": config.run.preset}, from_file)
    parser = _parser(config)
    from_flags, unknown = parser.read(argv)
    if unknown:
        raise ValueError(_about_unknown(unknown, config))
    config = _lay_over(config, from_flags, from_flags)
    config, gave_way = give_way(config, from_file.keys() | from_flags.keys(), world_size)
    config = config if world_size is None else fit_layout(config, world_size)
    return CommandLine(config, notes + file.notes + gave_way)


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn an error of ``kinds``, ValueError if there are none, that every rank raises into
    one line of rank 0 and exit code 2. So too what a file raises that is nested without end.
    """
    expected: tuple[type[Exception], ...] = (*(kinds or (ValueError,)), RecursionError)
    try:
        yield
    except expected as error:
        line = f"error: {' '.join(str(error).split())}"
        if is_rank_0():
            print(line, file=sys.stderr, flush=True)
            _tell_torchrun(line)
        else:
            _wait_for_rank_0()
        sys.exit(2)


def _tell_torchrun(line: str) -> None:
    """Leave the line where torchrun looks for it: its own report then ends with it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        more = {"py_callstack": line, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": more}}))


def _wait_for_rank_0() -> None:
    """Let rank 0 have its say: torchrun ends all ranks when the first one exits.

    Ended so, a rank is none of the failures that torchrun lists.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    time.sleep(_SECONDS_FOR_RANK_0)
    signal.signal(signal.SIGTERM, before)


def world_size() -> int:
    """Return the number of processes that torchrun started, before there are groups."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_rank_0() -> bool:
    """Return whether this is the process that speaks for the run, before there are groups."""
    return os.environ.get("RANK", "0") == "0"


def _read_early(argv: Sequence[str]) -> dict[str, Any]:
    """Return the flags that decide the defaults of all others; a wrong one is reported later."""
    settings = settings_by_name(Config())
    parser = Parser(add_help=False)
    early = [settings[name] for name in ("preset", "config", "model")]
    parser.add_settings("", early, {setting.name: None for setting in early})
    return parser.read(argv)[0]


def _preset(named: Mapping[str, Any], default: str | None) -> Config:
    """Build the preset that is named; ``--model`` may only repeat its family."""
    config = build_preset(named.get("preset") or default or families()[0].demo_preset)
    model = named.get("model", config.model.model)
    if model != config.model.model:
        presets = ", ".join(load_family(model).presets)
        raise ValueError(
            f"--model {model} is not that of preset {config.run.preset}; choose a preset of it by "
            f"--preset: {presets}"
        )
    return config


def _lay_over(config: Config, values: dict[str, Any], given: dict[str, Any]) -> Config:
    """Set the values of a place, above those of the AIA preset that it names."""
    if "aia_preset" in given:
        config = with_aia_preset(config, given["aia_preset"])
    return with_values(config, values)


def _parser(config: Config) -> Parser:
    parser = Parser(_DESCRIPTION, prints=is_rank_0())
    names = {
        "preset": sorted(preset_table()),
        "model": family_names(),
        "aia_preset": sorted(aia_preset_table()),
    }
    for group, settings in settings_by_group(type(config.model)).items():
        defaults = {name: value_of(config, name) for name in settings}
        parser.add_settings(group, settings.values(), defaults, names)
    return parser


def _about_unknown(unknown: list[str], config: Config) -> str:
    """Say it of all unknown flags at once: a command line of another program has many."""
    names = dict.fromkeys(word.split("=")[0] for word in unknown if word.startswith("-"))
    if not names:
        return f"unexpected argument {unknown[0]}; see --help"
    known = [setting.flag for setting in settings_by_name(config).values()]
    elsewhere = {
        flag(field): f"it is a setting of --model {family} only"
        for field, family in fields_of_families().items()
    }
    said = [
        elsewhere.get(name) or answer(name) or did_you_mean(name, known).removeprefix("; ")
        for name in names
    ]
    if len(names) == 1:
        return f"unknown option {next(iter(names))}; {said[0] or 'see --help'}"
    parts = [name + (f" ({text})" if text else "") for name, text in zip(names, said, strict=True)]
    return f"unknown options: {', '.join(parts)}; see --help"
