"""The command line: preset, YAML file and flags become one configuration."""

import argparse
import io
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import tyro

from megatron_aia.config import Config, fit_layout
from megatron_aia.config.files import (
    AIA_PRESETS,
    GROUP_OF_FIELD,
    did_you_mean,
    flag,
    read_yaml,
    with_aia_preset,
    with_values,
)
from megatron_aia.models import family_names, preset_table

_DESCRIPTION = """Train a unified multimodal model with the AIA loss.

Values come from --preset, then from --config, then from flags.

--check stops once they have been checked."""

_SECONDS_FOR_RANK_0 = 10


def parse(
    argv: Sequence[str], *, default_preset: str | None = None, world_size: int | None = None
) -> Config:
    """Return the configuration of a command line, not yet validated.

    Values come from the preset, then the YAML file, then the flags. An AIA preset sets its values
    just below the other keys of the place that names it, file or flags.

    Args:
        argv: the arguments, without the program's name.
        default_preset: the preset when neither flags nor file name one.
        world_size: processes of the run, to fit the layout to; ``None`` leaves it as written.

    Raises:
        ValueError: an argument or the file cannot be understood; one line with a remedy.
    """
    early = _parse_early(argv)
    from_file = read_yaml(early.config) if early.config not in (None, "none") else {}
    config = _preset(early.preset or from_file.get("preset") or default_preset or "emu3_demo")
    if "aia_preset" in from_file:
        config = with_aia_preset(config, from_file["aia_preset"])
    config = with_values(config, {**from_file, "preset": config.run.preset})
    if early.aia_preset in AIA_PRESETS:
        config = with_aia_preset(config, early.aia_preset)
    config = _apply_flags(config, argv)
    if config.model.model not in family_names():
        raise ValueError(f"unknown --model {config.model.model}; use {_listed(family_names())}")
    return config if world_size is None else fit_layout(config, world_size)


@contextmanager
def one_line_errors(kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Turn an error of ``kind`` that every rank raises into one line of rank 0 and exit code 2."""
    try:
        yield
    except kind as error:
        if is_rank_0():
            print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        else:
            # torchrun ends all ranks when the first one exits: let rank 0 have its say before.
            time.sleep(_SECONDS_FOR_RANK_0)
        sys.exit(2)


def is_rank_0() -> bool:
    """Return whether this is the process that speaks for the run, before there are groups."""
    return os.environ.get("RANK", "0") == "0"


def _parse_early(argv: Sequence[str]) -> argparse.Namespace:
    """Read the flags that decide the defaults of all others, and leave the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # nargs="?": a flag without its value passes here, and is reported with all the others later.
    parser.add_argument("--preset", nargs="?")
    parser.add_argument("--config", nargs="?")
    parser.add_argument("--aia-preset", "--aia_preset", nargs="?")
    return parser.parse_known_args(argv)[0]


def _preset(name: str) -> Config:
    table = preset_table()
    if name not in table:
        raise ValueError(f"unknown --preset {name}; use {_listed(sorted(table))}")
    return table[name].build()


def _apply_flags(config: Config, argv: Sequence[str]) -> Config:
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_none_in_lower_case)
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            config, unknown = tyro.cli(
                Config,
                args=list(argv),
                default=config,
                prog=Path(sys.argv[0]).name,
                description=_DESCRIPTION,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=registry,
                console_outputs=is_rank_0(),
                return_unknown_args=True,
            )
    except SystemExit as exit_request:
        if not exit_request.code:
            raise  # --help
        raise ValueError(_first_paragraph(printed.getvalue())) from None
    if unknown:
        raise ValueError(_about_unknown(unknown))
    return config


def _none_in_lower_case(type_info: Any) -> tyro.constructors.PrimitiveConstructorSpec | None:
    """Spell the unset value ``none``, as on any other command line (tyro's own is ``None``)."""
    if type_info.type is not type(None):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="none",
        choices=("none",),
        instance_from_str=lambda _: None,
        is_instance=lambda value: value is None,
        str_from_instance=lambda _: ["none"],
    )


def _first_paragraph(box: str) -> str:
    """Return what tyro's framed message says before its first ruler, on one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    ruler = next((i for i, row in enumerate(rows) if row.startswith("─")), len(rows))
    message = " ".join(rows[:ruler]).split(" Got errors:")[0].rstrip(". ")
    return f"{message or 'the command line cannot be understood'}; see --help"


def _about_unknown(unknown: list[str]) -> str:
    names = [argument for argument in unknown if argument.startswith("--")]
    if not names:
        return f"unexpected argument {unknown[0]}; see --help"
    name = names[0].split("=")[0].replace("_", "-")
    return f"unknown option {name}" + (
        did_you_mean(name, [flag(field) for field in GROUP_OF_FIELD]) or "; see --help"
    )


def _listed(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
