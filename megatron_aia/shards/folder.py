"""Data folders, here or behind a URL: their shards, and what their writer noted of them."""

import json
import re
from pathlib import Path
from typing import Any

from megatron_aia.config.locations import check_location, is_url
from megatron_aia.shards.problems import quote
from megatron_aia.shards.remote import list_remote_shards, read_remote_file
from megatron_aia.shards.shard import LocalShard, Shard

DESCRIPTION_FILE = "dataset.json"
TOKENIZER_FILE = "tokenizer.model"
"""The text tokeniser that may stand beside shards."""
CODEBOOK_FILE = "codebook.npz"
"""The image tokeniser that may stand beside shards."""
_SHARD_NAME = re.compile(r"[^/\\?#%:]+\.tar")


def list_shards(folder: str | Path) -> tuple[Shard, ...]:
    """Describe the ``*.tar`` files of a folder, in the order of their names.

    Raises:
        ValueError: the folder or its shards are missing.
        OSError: it cannot be reached.
    """
    location = str(folder)
    check_location(location)
    shards: tuple[Shard, ...]
    if is_url(location):
        description = read_description(location) or {}
        shards = list_remote_shards(location, listed_shards(description))
    elif not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder; build it with tools/build_shards.py")
    else:
        shards = tuple(LocalShard.at(path) for path in sorted(Path(folder).glob("*.tar")))
    if not shards:
        raise ValueError(f"{folder}: no *.tar shards; build them with tools/build_shards.py")
    return shards


def read_description(folder: str | Path) -> dict[str, Any] | None:
    """Return what the writer of a folder noted in ``dataset.json``; None where it is not there.

    Raises:
        ValueError: it is not JSON, or no object.
        OSError: it cannot be read.
    """
    location = f"{str(folder).rstrip('/')}/{DESCRIPTION_FILE}"
    data = read_remote_file(location) if is_url(location) else _read_local_file(Path(location))
    if data is None:
        return None
    try:
        description = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{location}: does not parse ({error}); build the folder again") from None
    if not isinstance(description, dict):
        raise ValueError(f"{location}: is no object; build the folder again")
    return description


def listed_shards(description: dict[str, Any]) -> list[tuple[str, int]] | None:
    """Return (name, bytes) of every shard that ``dataset.json`` lists; None without a list.

    Raises:
        ValueError: the list is none.
    """
    entries = description.get("shards")
    if entries is None:
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(
            f"{DESCRIPTION_FILE}: 'shards' is not a list of {{name, size}}; build the folder again"
        )
    listed = [(entry.get("name"), entry.get("size")) for entry in entries]
    for name, size in listed:
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or type(size) is not int:
            raise ValueError(
                f"{DESCRIPTION_FILE}: {quote(name)} of {quote(size)} bytes is no shard; build the "
                "folder again"
            )
    return listed


def _read_local_file(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
