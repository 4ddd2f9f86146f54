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
import dataclasses
import json
import logging
import os
import re
import shutil
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_aia.checkpoint.manifest import FileSums, list_files, sum_files
from megatron_aia.config import ModelConfig
from megatron_aia.runtime.atomic import write_text
from megatron_aia.runtime.versions import megatron_core_version

LATEST_FILE = "latest_checkpointed_iteration.txt"
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
RELEASE = "release"
WRITING = "writing"
REPLACED = "replaced"
"""Ends of hidden names: a checkpoint that is not whole yet, and one that another takes the name of.
"""
FORMAT_VERSION = 1

_NAME = re.compile(r"iter_(\d{7,})")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunState:
    """Where a run stands, and what its checkpoint may be loaded into."""

    iteration: int
    """Optimizer steps done, skipped ones included."""
    consumed_samples: int
    """Samples since the start of the run: with ``data_start`` the whole state of the data."""
    total_skipped: int
    """Steps without an update so far."""
    data_fingerprint: str
    """Of what a position means; "" in a checkpoint without training state."""
    model: dict[str, Any]
    """Fields of the model's configuration."""
    layout: dict[str, int]
    """Sizes of the saving run by axis; random states fit only the same layout."""
    optimizer: str
    """``distributed`` or ``replicated``: the two store different things; "" if there is none."""
    freeze: tuple[str, ...] = ()
    """Patterns of --freeze: the optimizer has no state of what they fit."""
    data_start: int = 0
    """``consumed_samples`` where the order of the present data began; not 0 after --reset-data."""
    megatron_core: str = field(default_factory=megatron_core_version)
    """Version that wrote the tensors; "" in a checkpoint that does not say it."""


_STATE_FIELDS = tuple(field.name for field in dataclasses.fields(RunState))


def architecture(model: ModelConfig) -> dict[str, Any]:
    """Return the model fields that decide which weights there are and what they mean.

    A family's own ``..._loss_weight`` are none of them.
    """
    ignored = (
        *("attention_dropout", "hidden_dropout", "init_method_std", "max_position_embeddings"),
        *("attention_backend", "transformer_impl", "make_vocab_size_divisible_by"),
    )
    fields = dataclasses.asdict(model)
    return {
        name: value
        for name, value in fields.items()
        if name not in ignored and not name.endswith("_loss_weight")
    }


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


def write_state(
    path: Path, state: RunState, config_text: str, sums: FileSums | None = None
) -> None:
    """Write the readable part of a checkpoint; with ``run.json`` it is complete.

    Args:
        path: of the checkpoint; its other files are all there.
        state: of the run.
        config_text: its settings.
        sums: of files that were read before; those of all others are made now.
    """
    (path / CONFIG_FILE).write_text(config_text, encoding="utf-8")
    known = dict(sums or {})
    known |= sum_files(path, list_files(path, without=(*known, RUN_FILE)))
    document = {
        "format_version": FORMAT_VERSION,
        **dataclasses.asdict(state),
        "saved_at": time.time(),
        "files": known,
    }
    document["crc32"] = _checksum(document)
    write_text(path / RUN_FILE, json.dumps(document, indent=2) + "\n")


def read_state(path: Path) -> RunState:
    """Read what ``write_state`` wrote.

    Raises:
        ValueError: the file is damaged or of another format.
    """
    document = _read_document(path)
    try:
        known = {name: document[name] for name in _STATE_FIELDS if name in document}
        known["freeze"] = tuple(document.get("freeze", ()))
        return RunState(**{"megatron_core": "", **known})
    except (TypeError, AttributeError) as error:
        raise _unreadable(path / RUN_FILE, error) from error


def read_sums(path: Path) -> FileSums | None:
    """Return the sums of a checkpoint's files; None for one of an earlier version, without any.

    Raises:
        ValueError: as ``read_state``.
    """
    found = _read_document(path).get("files")
    if found is None:
        return None
    try:
        return {str(name): (int(length), str(digits)) for name, (length, digits) in found.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise _unreadable(path / RUN_FILE, error) from error


def _read_document(path: Path) -> dict[str, Any]:
    file = path / RUN_FILE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}, this program reads {FORMAT_VERSION}")
        if document.get("crc32", _checksum(document)) != _checksum(document):
            raise ValueError("it does not fit its own CRC-32")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        raise _unreadable(file, error) from error
    return dict(document)


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} cannot be read: {error}; use another checkpoint")


def _checksum(document: dict[str, Any]) -> str:
    """Return the CRC-32 of all other fields, however they are laid out."""
    others = {name: value for name, value in document.items() if name != "crc32"}
    return f"{zlib.crc32(json.dumps(others, sort_keys=True).encode()):08x}"


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

    def age(path: Path) -> tuple[float, int]:
        try:
            saved_at = float(_read_document(path).get("saved_at", 0))
        except (ValueError, TypeError):
            saved_at = 0.0
        return saved_at, int(path.name.split("_")[1])

    return sorted(paths, key=age)
