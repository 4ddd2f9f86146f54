"""Which checkpoint a command takes, and whether its files are those that were written."""

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_aia.checkpoint.folder import complete_checkpoints, find_checkpoint
from megatron_aia.checkpoint.manifest import find_damage
from megatron_aia.checkpoint.run_state import read_sums
from megatron_aia.runtime.parallel import broadcast_failure

logger = logging.getLogger(__name__)


def choose_checkpoint(
    folder: Path,
    control: dist.ProcessGroup | None = None,
    verify: bool = True,
    fallback: bool = False,
) -> Path:
    """Find the newest checkpoint of a folder and compare its files with their checksums.

    Every rank of ``control`` calls this; each reads a share of the files.

    Args:
        folder: of checkpoints, or one checkpoint.
        control: ranks that load it; None in a single process.
        verify: compare; else it is only found.
        fallback: where it is damaged, take the whole one that was written before it.

    Raises:
        ValueError: on every rank: there is none, or it is damaged; naming file and reason, and
            which other one is whole.
    """
    path = _find(folder, control)
    if not verify:
        return path
    damage = _find_damage(path, control)
    if not damage:
        return path
    for other in _others(path, control):
        if _find_damage(other, control):
            continue
        if fallback:
            logger.warning("%s; taking %s (--load-fallback)", damage, other)
            return other
        raise ValueError(
            f"{damage}; {other} is whole: name it by --load, or pass --load-fallback to take it"
        )
    raise ValueError(f"{damage}; no other checkpoint beside it is whole")


def _find(folder: Path, control: dist.ProcessGroup | None) -> Path:
    """Find it on the first rank: ranks must agree, whatever their file systems show them."""
    if control is None:
        return find_checkpoint(folder)
    found: list[Path | None] = [None]
    error: Exception | None = None
    if control.rank() == 0:
        try:
            found = [find_checkpoint(folder)]
        except (ValueError, OSError) as caught:
            error = ValueError(str(caught))
    broadcast_failure(error, control)
    dist.broadcast_object_list(found, src=0, group=control)
    assert found[0] is not None
    return found[0]


def _others(path: Path, control: dist.ProcessGroup | None) -> list[Path]:
    """Return the other complete ones, the newest first, as the first rank sees them."""
    found: list[Any] = [None]
    if control is None or control.rank() == 0:
        found = [[each for each in reversed(complete_checkpoints(path.parent)) if each != path]]
    if control is not None:
        dist.broadcast_object_list(found, src=0, group=control)
    return list(found[0])


def _find_damage(path: Path, control: dist.ProcessGroup | None) -> str:
    """Return what is wrong with a checkpoint, on any rank; "" if nothing is."""
    rank, size = (0, 1) if control is None else (control.rank(), control.size())
    try:
        sums = read_sums(path)
        if sums is None:
            if rank == 0:
                logger.warning("%s is of an earlier version and has no checksums", path)
            found = ""
        else:
            found = find_damage(path, sums, rank, size)
    except ValueError as error:
        found = str(error)
    if control is None:
        return found
    everywhere: list[Any] = [None] * size
    dist.all_gather_object(everywhere, found, group=control)
    return next((each for each in everywhere if each), "")
