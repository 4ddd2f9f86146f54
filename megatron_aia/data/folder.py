"""Data folders: where shards are, and what their writer noted of them."""

import json
from pathlib import Path
from typing import Any

from megatron_aia.data.shard import LocalShard, Shard

DESCRIPTION_FILE = "dataset.json"


def list_shards(folder: str | Path) -> tuple[Shard, ...]:
    """Describe the ``*.tar`` files of a folder, in the order of their names.

    Raises:
        ValueError: the folder or its shards are missing.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{folder}: no such folder; build it with tools/build_shards.py")
    shards = tuple(LocalShard.at(path) for path in sorted(path.glob("*.tar")))
    if not shards:
        raise ValueError(f"{folder}: no *.tar shards; build them with tools/build_shards.py")
    return shards


def read_description(folder: str | Path) -> dict[str, Any] | None:
    """Return what the writer of a folder noted in ``dataset.json``; None where it is not there.

    Raises:
        ValueError: it is not JSON, or no object.
    """
    path = Path(folder) / DESCRIPTION_FILE
    if not path.exists():
        return None
    try:
        description = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: does not parse ({error}); build the folder again") from None
    if not isinstance(description, dict):
        raise ValueError(f"{path}: is no object; build the folder again")
    return description
