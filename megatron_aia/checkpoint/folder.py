"""The folder of a run's checkpoints: which there are, what they say of themselves, which go.

Layout, as Megatron-LM's::

    latest_checkpointed_iteration.txt    the newest complete one
    iter_0000100/                        one checkpoint; appears whole, by a rename
        run.json                         what it was made by, read before any tensor
        config.yaml                      the resolved configuration
        metadata.json, *.distcp, .metadata
        common.pt                        only of megatron-core 0.18 and older
    release/                             the same without training state: converted weights
        hugging_face/                    what the converter keeps aside
"""

import dataclasses
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_aia.config import ModelConfig
from megatron_aia.runtime.atomic import write_text
from megatron_aia.runtime.versions import megatron_core_version

LATEST_FILE = "latest_checkpointed_iteration.txt"
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
RELEASE = "release"
FORMAT_VERSION = 1

_NAME = re.compile(r"iter_(\d{7,})")


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
    """Return whether ``find_checkpoint`` would find one, or at least a pointer to one."""
    return any((folder / name).is_file() for name in (RUN_FILE, LATEST_FILE))


def find_checkpoint(folder: Path) -> Path:
    """Return the newest complete checkpoint of ``folder``, or ``folder`` if it is one itself.

    Raises:
        ValueError: there is none.
    """
    if (folder / RUN_FILE).is_file():
        return folder
    latest = folder / LATEST_FILE
    if not latest.is_file():
        raise ValueError(
            f"{folder} holds no checkpoint ({LATEST_FILE} is missing); "
            "give the folder that another run saved to"
        )
    text = latest.read_text().strip()
    path = checkpoint_path(folder, int(text)) if text.isdigit() else folder / text
    if not (path / RUN_FILE).is_file():
        raise ValueError(f"{folder}: {latest.name} names {path.name}, which is not there")
    return path


def write_state(path: Path, state: RunState, config_text: str) -> None:
    """Write the readable part of a checkpoint."""
    document = {"format_version": FORMAT_VERSION, **dataclasses.asdict(state)}
    (path / RUN_FILE).write_text(json.dumps(document, indent=2) + "\n")
    (path / CONFIG_FILE).write_text(config_text)


def read_state(path: Path) -> RunState:
    """Read what ``write_state`` wrote.

    Raises:
        ValueError: the file is damaged or of another format.
    """
    file = path / RUN_FILE
    try:
        document = json.loads(file.read_text())
        version = document.pop("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}, this program reads {FORMAT_VERSION}")
        document["freeze"] = tuple(document.get("freeze", ()))
        return RunState(**{"megatron_core": "", **document})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{file} cannot be read: {error}; use another checkpoint") from error


def publish(temporary: Path, final: Path, keep: int) -> None:
    """Make a complete checkpoint visible and remove old ones.

    Args:
        temporary: where it was written, beside ``final``.
        final: its name; replaced if a run that went back in time wrote it before.
        keep: newest checkpoints that stay; 0 keeps all.
    """
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    write_text(final.parent / LATEST_FILE, f"{int(final.name.split('_')[1])}\n")
    if keep:
        for old in _checkpoints(final.parent)[:-keep]:
            if old != final:
                shutil.rmtree(old)


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split("_")[1]))
