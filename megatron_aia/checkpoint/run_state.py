"""What a checkpoint says of itself: ``run.json``, read before any tensor."""

import dataclasses
import json
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_aia.checkpoint.manifest import FileSums, list_files, sum_files
from megatron_aia.config import ModelConfig
from megatron_aia.runtime.atomic import write_text
from megatron_aia.runtime.versions import megatron_core_version

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
FORMAT_VERSION = 1


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


def saved_at(path: Path) -> float:
    """Return when a checkpoint was written, in seconds; 0 for one that does not tell it."""
    try:
        return float(_read_document(path).get("saved_at", 0))
    except (ValueError, TypeError):
        return 0.0


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
