"""How many tokens each sample takes: known before a sample is read, so packing can be planned."""

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from megatron_aia.data.sample import SampleEncoder
from megatron_aia.runtime.workers import available_cores, map_in_processes
from megatron_aia.shards.cache import keep_file
from megatron_aia.shards.index import ShardIndex
from megatron_aia.shards.raw_sample import CorruptSampleError

CORRUPT = -1
"""In the place of the length of a sample that is damaged."""
_CHUNK = 1024
"""Samples that a worker counts in one go."""
_MIN_CHUNKS_PER_WORKER = 8

logger = logging.getLogger(__name__)


def token_lengths(
    index: ShardIndex,
    encoder: SampleEncoder,
    codebook_size: int,
    num_workers: int | None = None,
) -> np.ndarray:
    """Return the tokens of every sample, its prompt not dropped: int32 ``[len(index)]``.

    The first call reads and tokenises the whole folder, but decodes no picture, so it also finds
    every sample that is damaged before its pixels; ``CORRUPT`` stands for its length. The table is
    kept beside the index for later calls, which look at the corrupt samples alone: somebody may
    have repaired them.

    Args:
        index: the samples.
        encoder: writes a sample as tokens.
        codebook_size: codes are below this.
        num_workers: processes that count, if the table is not kept yet; None for as many as there
            are cores and work for them. The table does not depend on it.

    Raises:
        ValueError: a sample cannot be written as tokens, or a shard has changed.
        OSError: a shard cannot be read.
    """
    source = f"{index.fingerprint}/{encoder.fingerprint}/{codebook_size}"
    name = f"lengths-{hashlib.sha256(source.encode()).hexdigest()[:16]}.npy"
    path = index.cache / name
    count = partial(_count, index, encoder, codebook_size)
    lengths = _load(path, len(index))
    if lengths is None:
        lengths = _count_all(index, count, num_workers)
    else:
        damaged = np.flatnonzero(lengths == CORRUPT)
        lengths[damaged] = [count(int(number)) for number in damaged]
        if (lengths[damaged] == CORRUPT).all():
            return lengths
    keep_file(path, lambda file: np.save(file, lengths))
    return lengths


def _load(path: Path, size: int) -> np.ndarray | None:
    try:
        lengths = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return lengths if lengths.dtype == np.int32 and lengths.shape == (size,) else None


def _count(index: ShardIndex, encoder: SampleEncoder, codebook_size: int, number: int) -> int:
    try:
        return len(encoder.dry_run(index.read(number, codebook_size)))
    except CorruptSampleError:
        return CORRUPT


def _count_all(
    index: ShardIndex, count: Callable[[int], int], num_workers: int | None
) -> np.ndarray:
    logger.info("counting the tokens of %d samples of %s", len(index), index.folder)

    def count_chunk(chunk: range) -> np.ndarray:
        return np.array([count(number) for number in chunk], np.int32)

    chunks = [range(len(index))[start : start + _CHUNK] for start in range(0, len(index), _CHUNK)]
    if num_workers is None:
        num_workers = min(available_cores(), len(chunks) // _MIN_CHUNKS_PER_WORKER)
    counted = map_in_processes(count_chunk, chunks, num_workers, "count tokens", "k samples")
    return np.concatenate(list(counted))
