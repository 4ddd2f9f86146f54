"""What a folder of results was made with: a command that goes on with it must say the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_aia.runtime.atomic import write_text

SETTINGS_FILE = "settings.yaml"


def open_results(
    folder: Path, settings: Mapping[str, Any], hidden: Mapping[str, str], parts: Sequence[str]
) -> None:
    """Make a folder of results, or go on with it.

    Args:
        folder: of ``--output``.
        settings: plain values.
        hidden: settings whose value says nothing to a user, and what to call others.
        parts: folders to make in it.

    Raises:
        ValueError: it holds something else, or was begun with other settings.
    """
    path = folder / SETTINGS_FILE
    if path.is_file():
        compare_settings(
            folder, yaml.safe_load(path.read_text(encoding="utf-8")) or {}, settings, hidden
        )
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"--output {folder} exists and was not made by this command; choose another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_text(path, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
    for part in parts:
        (folder / part).mkdir(exist_ok=True)


def compare_settings(
    folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any], hidden: Mapping[str, str]
) -> None:
    """Compare what a folder was begun with; arguments are those of ``open_results``.

    Raises:
        ValueError: a setting differs.
    """
    for name in {**settings, **found}:
        before, now = found.get(name), settings.get(name)
        if before != now:
            said = hidden.get(name, f"{name} {before!r}, not {now!r}")
            raise ValueError(
                f"--output {folder} holds results of {said}; choose another folder, or the "
                "settings it was begun with"
            )
