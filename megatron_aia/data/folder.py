"""Data folders: where shards are, and what their writer noted of them."""

from pathlib import Path

from megatron_aia.data.shard import LocalShard, Shard


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
