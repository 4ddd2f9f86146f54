"""How many tokens each sample takes: known before any sample is read, so rows can be planned."""

import hashlib
import logging

import numpy as np

from megatron_aia.data.cache import replace_file
from megatron_aia.data.index import ShardIndex
from megatron_aia.data.sample import PromptBuilder

logger = logging.getLogger(__name__)


def token_lengths(
    index: ShardIndex, prompt: PromptBuilder, prompt_fingerprint: str, codebook_size: int
) -> np.ndarray:
    """Return the tokens of every sample, its prompt not dropped: int32 ``[len(index)]``.

    The first call reads and tokenises the whole folder, but decodes no picture, so it also finds
    every sample that cannot be read. The table is kept beside the index for later calls.

    Args:
        index: the samples.
        prompt: writes a sample as tokens.
        prompt_fingerprint: changes whenever ``prompt`` may return another length.
        codebook_size: codes are below this.

    Raises:
        ValueError: a sample cannot be read or written as tokens.
    """
    source = f"{index.fingerprint}/{prompt_fingerprint}/{codebook_size}"
    name = f"lengths-{hashlib.sha256(source.encode()).hexdigest()[:16]}.npy"
    path = index.cache / name
    try:
        lengths = np.load(path, allow_pickle=False)
        if lengths.dtype == np.int32 and lengths.shape == (len(index),):
            return lengths
    except (OSError, ValueError, EOFError):
        pass
    logger.info("counting the tokens of %d samples of %s", len(index), index.folder)
    counts = (len(prompt.outline(index.read(i, codebook_size))) for i in range(len(index)))
    lengths = np.fromiter(counts, np.int32, len(index))
    replace_file(path, lambda file: np.save(file, lengths))
    return lengths
