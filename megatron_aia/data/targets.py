"""What losses learn from: targets by name, of one sample and of a micro-batch.

A target is a list of entries: the position of an output that predicts, the value it should give,
and a weight. Entries are cut and packed like tokens, so a loss term knows nothing of the layout.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from megatron_aia.runtime.context_parallel_slices import positions_of_rank

NEXT_TOKEN = "next_token"
"""The ids of labelled tokens, each predicted at the position before it."""

TargetWidths = Mapping[str, int]
"""Targets by name: width of a value, which is a vector; 0 where a value is an id."""
NEXT_TOKEN_ONLY: TargetWidths = MappingProxyType({NEXT_TOKEN: 0})


@dataclass(frozen=True)
class Target:
    """What one target name asks of a sample; ``n`` entries in ascending order of position."""

    positions: np.ndarray
    """int64 ``[n]``: positions in the sample of the outputs that predict."""
    values: np.ndarray
    """int64 ``[n]`` ids, or float32 ``[n, d]`` vectors."""
    weights: np.ndarray
    """float32 ``[n]``, above 0."""

    def cut(self, num_tokens: int) -> "Target":
        """Return what is left when the sample is cut to its first ``num_tokens`` tokens.

        The last output that is left predicts what was cut away, so its entries go too.
        """
        kept = self.positions < num_tokens - 1
        return Target(self.positions[kept], self.values[kept], self.weights[kept])


def next_token_target(tokens: np.ndarray, label_weights: np.ndarray) -> Target:
    """Return the next-token target of a sample.

    Args:
        tokens: int64 ``[n]`` ids.
        label_weights: float32 ``[n]``; above 0 where the token is to be predicted from the tokens
            before it. The first token cannot be.
    """
    assert not len(label_weights) or label_weights[0] == 0, "nothing predicts the first token"
    labelled = np.flatnonzero(label_weights > 0)
    return Target(labelled - 1, tokens[labelled], label_weights[labelled].astype(np.float32))


@dataclass(frozen=True)
class BatchTarget:
    """A target of all samples of a micro-batch, ``n`` entries."""

    positions: Tensor
    """int64 ``[n]``: places of the outputs in the flattened ``[b, s]`` tokens that a rank holds."""
    values: Tensor
    """int64 ``[n]`` or float32 ``[n, d]``."""
    weights: Tensor
    """float32 ``[n]``."""
    tasks: Tensor
    """int64 ``[n]``: task of the sample."""
    samples: Tensor
    """int64 ``[n]``: number of the sample in the micro-batch."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "BatchTarget":
        """Return a copy with ``function`` applied to every tensor."""
        return BatchTarget(*(function(tensor) for tensor in vars(self).values()))

    def slice_for_rank(self, length: int, rank: int, size: int) -> tuple["BatchTarget", Tensor]:
        """Return the entries whose outputs a context-parallel rank holds, and their numbers.

        Args:
            length: tokens of a whole sequence.
            rank: context-parallel rank.
            size: context-parallel size.
        """
        kept, places = positions_of_rank(self.positions, length, rank, size)
        return BatchTarget(
            places, self.values[kept], self.weights[kept], self.tasks[kept], self.samples[kept]
        ), kept


class TargetCollator:
    """Collects the targets of samples as they are laid out in a micro-batch.

    Args:
        widths: the targets that samples may have.
    """

    def __init__(self, widths: TargetWidths) -> None:
        self._widths = widths
        self._parts: dict[str, list[tuple[Target, int, int, int]]] = {name: [] for name in widths}

    def add(self, targets: Mapping[str, Target], start: int, task: int, number: int) -> None:
        """Add a sample.

        Args:
            targets: of the sample.
            start: place of its first token in the flattened ``[b, s]`` tokens.
            task: of the sample.
            number: of the sample in the micro-batch.
        """
        for name, target in targets.items():
            assert name in self._parts, f"the encoder does not declare its target {name}"
            self._parts[name].append((target, start, task, number))

    def collate(self) -> dict[str, BatchTarget]:
        """Return every declared target, some perhaps without an entry."""
        return {name: _join(self._parts[name], width) for name, width in self._widths.items()}


def _join(parts: Sequence[tuple[Target, int, int, int]], width: int) -> BatchTarget:
    sizes = [len(target.positions) for target, *_ in parts]
    values = np.zeros((0, width), np.float32) if width else np.zeros(0, np.int64)
    starts, tasks, numbers = (
        np.repeat(np.array([part[column] for part in parts], np.int64), sizes)
        for column in (1, 2, 3)
    )
    positions = np.concatenate([np.zeros(0, np.int64), *(part[0].positions for part in parts)])
    weights = np.concatenate([np.zeros(0, np.float32), *(part[0].weights for part in parts)])
    values = np.concatenate([values, *(part[0].values for part in parts)])
    return BatchTarget(
        *map(torch.from_numpy, (positions + starts, values, weights, tasks, numbers))
    )
