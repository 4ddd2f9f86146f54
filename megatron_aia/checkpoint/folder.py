"""The folder of a run's checkpoints: which there are, what they say of themselves, which go.

Layout, as Megatron-LM's::

    latest_checkpointed_iteration.txt    the newest complete one
    iter_0000100/                        one checkpoint; appears whole, by a rename
        run.json                         what it was made by, read before any tensor; size and
                                         CRC-32 of every other file, and its own CRC-32
        config.yaml                      the resolved configuration
        metadata.json, *.distcp, .metadata
        common.pt                        only of megatron-core 0.18 and older
    release/                             the same without training state: converted weights
        hugging_face/                    what the converter keeps aside
"""

import contextlib
import logging
import os
import re
import shutil
from pathlib import Path

from megatron_aia.checkpoint.run_state import RUN_FILE, saved_at
from megatron_aia.runtime.atomic import write_text

LATEST_FILE = "latest_checkpointed_iteration.txt"
RELEASE = "release"
WRITING = "writing"
REPLACED = "replaced"
"""Ends of hidden names: a checkpoint that is not whole yet, and one that another takes the name of.
"""
_NAME = re.compile(r"iter_(\d{7,})")
logger = logging.getLogger(__name__)


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Return where the checkpoint of ``iteration`` stands."""
    return folder / f"iter_{iteration:07d}"


def has_checkpoint(folder: Path) -> bool:
    """Return whether there is one in ``folder``, a pointer to one, or what is left of one."""
    if any((folder / name).is_file() for name in (RUN_FILE, LATEST_FILE)):
        return True
    return folder.is_dir() and bool(_named_checkpoints(folder))


def find_checkpoint(folder: Path) -> Path:
    """Return the newest complete checkpoint of ``folder``, or ``folder`` if it is one itself.

    Where the file that names it is lost, or names what is not there, as after a kill between two
    renames, the one written last is taken, with a warning.

    Raises:
        ValueError: there is none.
    """
    if (folder / RUN_FILE).is_file():
        return folder
    latest = folder / LATEST_FILE
    try:
        named: Path | None = _named_by(latest)
        problem = f"names {named.name}, which is not there" if named else ""
    except FileNotFoundError:
        named, problem = None, "is missing"
    except (OSError, ValueError) as error:
        named, problem = None, f"cannot be read ({error})"
    if named is not None and (named / RUN_FILE).is_file():
        return named
    others = complete_checkpoints(folder)
    found = _unpublished(named) or (others[-1] if others else None)
    if found is None:
        raise ValueError(
            f"{folder} holds no checkpoint ({LATEST_FILE} {problem}); "
            "give the folder that another run saved to"
        )
    logger.warning("%s %s; taking %s, which was written last", latest, problem, found)
    return found


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, the one written last at the end."""
    if not folder.is_dir():
        return []
    return [path for path in _by_age(_named_checkpoints(folder)) if (path / RUN_FILE).is_file()]


def _named_by(latest: Path) -> Path:
    text = latest.read_text(encoding="utf-8").strip()
    if not text or not (text.isdigit() or _NAME.fullmatch(text) or text == RELEASE):
        raise ValueError(f"it holds {text[:40]!r}")
    return checkpoint_path(latest.parent, int(text)) if text.isdigit() else latest.parent / text


def _unpublished(named: Path | None) -> Path | None:
    """Return a whole checkpoint that was killed on its way to the name, the new before the old."""
    if named is None:
        return None
    found = (named.with_name(f".{named.name}.{end}") for end in (WRITING, REPLACED))
    return next((path for path in found if (path / RUN_FILE).is_file()), None)


def publish(temporary: Path, final: Path, keep: int) -> None:
    """Make a complete checkpoint visible and remove old ones.

    At every moment there is a complete checkpoint that ``find_checkpoint`` finds.

    Args:
        temporary: where it was written, beside ``final``.
        final: its name; replaced if a run that went back in time wrote it before.
        keep: checkpoints that stay, those written last; 0 keeps all.
    """
    replaced = final.with_name(f".{final.name}.{REPLACED}")
    if final.exists():
        os.replace(final, replaced)
    os.replace(temporary, final)
    write_text(final.parent / LATEST_FILE, f"{int(final.name.split('_')[1])}\n")
    if replaced.exists():
        shutil.rmtree(replaced)
    if keep:
        # What a run that went back in time left behind is older than its number says.
        for old in _by_age(_named_checkpoints(final.parent))[:-keep]:
            if old != final:
                shutil.rmtree(old)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed saves left, but nothing that ``find_checkpoint`` would take."""
    leftovers = [path for end in (WRITING, REPLACED) for path in folder.glob(f".iter_*.{end}")]
    if not leftovers:
        return
    taken: Path | None = None
    with contextlib.suppress(ValueError):  # there is none yet
        taken = find_checkpoint(folder)
    for path in leftovers:
        if path != taken:
            logger.info("removing %s, which a save that was cut off has left", path)
            shutil.rmtree(path)


def _named_checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]


def _by_age(paths: list[Path]) -> list[Path]:
    """Sort by the time of writing; those that do not tell it come first, by number."""
    return sorted(paths, key=lambda path: (saved_at(path), int(path.name.split("_")[1])))
