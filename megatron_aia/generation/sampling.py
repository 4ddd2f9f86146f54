"""Which id is chosen: guidance, filters, and numbers drawn for each row alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_aia.runtime.device import send


@dataclass(frozen=True)
class Sampling:
    """How an id is chosen from logits. Applied in this order, as Transformers does."""

    temperature: float = 1.0
    """Divides the logits; 0 chooses the most probable id."""
    top_k: int = 0
    """Only so many most probable ids remain; 0: all."""
    top_p: float = 1.0
    """Only the most probable ids remain that reach this probability together."""

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0


class RowNoise:
    """Random numbers of each row of a batch, which depend on its own key and step only.

    Args:
        keys: one a row, as ``row_key`` makes them.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        self._generators = [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def draw(self, size: int, rows: np.ndarray, device: torch.device) -> Tensor:
        """Return numbers of the exponential distribution, float32 ``[b, size]``.

        Args:
            size: numbers a row.
            rows: bool ``[b]``: the rows that choose an id; nothing is drawn for the others.
            device: for the result.
        """
        noise = np.ones((len(self._generators), size), np.float32)
        for row in np.flatnonzero(rows):
            # In float64, where 0 does not come up.
            noise[row] = self._generators[row].standard_exponential(size)
        return send(torch.from_numpy(noise), device)


def row_key(*parts: object) -> int:
    """Return the key of a row that is made of these parts, 128 bits."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def guide(logits: Tensor, scale: float) -> Tensor:
    """Return ``u + scale * (c - u)`` of rows c, then rows u: ``[2b, n]`` to ``[b, n]``."""
    conditional, unconditional = logits.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def keep_likely(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the logits that are sampled from, ``[b, n]``; -inf where an id is left out."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        shares = ordered.softmax(-1)
        # An id stays while those before it have not reached the share; so the first one does.
        left_out = shares.cumsum(-1) - shares >= sampling.top_p
        logits = logits.masked_fill(left_out.scatter(1, order, left_out), -torch.inf)
    return logits


def choose_ids(logits: Tensor, sampling: Sampling, noise: Tensor | None) -> Tensor:
    """Return a column a row, int64 ``[b]``.

    The least of e / p over independent exponential e falls on each id with its probability p.
    Another rounding of the logits moves the choice of few rows then, and of none by far.

    Args:
        logits: float32 ``[b, n]``.
        sampling: of all rows.
        noise: of ``RowNoise``; not read where the most probable id is chosen.
    """
    if sampling.is_greedy:
        return logits.argmax(-1)
    assert noise is not None
    return (keep_likely(logits, sampling) - noise.log()).argmax(-1)
