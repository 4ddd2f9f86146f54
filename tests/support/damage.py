"""Damage to the shards of ``tiny_data``: one member, its place and size unchanged."""

import tarfile
from pathlib import Path


def spoil(folder: Path, task: str, suffix: str, count: int, header_only: bool) -> list[str]:
    """Zero bytes in the first member that ends in ``suffix`` of the first samples of a task.

    Args:
        folder: of shards.
        task: of the samples to spoil.
        suffix: of the members, for example ``.npy``.
        count: samples to spoil in each shard.
        header_only: zero the first bytes; else those of the middle, which only decoding meets.

    Returns:
        ``<shard>/<key>`` of the spoiled samples.
    """
    spoiled = []
    for shard in sorted(folder.glob("*.tar")):
        content = bytearray(shard.read_bytes())
        with tarfile.open(shard) as archive:
            members = archive.getmembers()
            texts = {
                m.name.split(".")[0]: content[m.offset_data : m.offset_data + m.size]
                for m in members
                if m.name.endswith(".json")
            }
        keys = [key for key, text in texts.items() if f'"task": "{task}"'.encode() in text]
        for key in keys[:count]:
            member = next(
                m for m in members if m.name.startswith(f"{key}.") and m.name.endswith(suffix)
            )
            start = member.offset_data + (0 if header_only else member.size // 2)
            content[start : start + 8] = bytes(8)
            spoiled.append(f"{shard.name}/{key}")
        shard.write_bytes(content)
    return spoiled
