"""What the normalisers of a step are made of, counted over the global batch before it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_aia.data.batch import MicroBatch
from megatron_aia.models.losses import LossTerm
from megatron_aia.runtime.device import device


@dataclass(frozen=True)
class StepCounts:
    """Counts of the global batch of one step."""

    of_term: Mapping[str, Tensor]
    """By loss term, float64: what ``LossTerm.counts`` counts."""
    intensities: int
    """Intensities of both AIA tasks (a sample with both tasks has two)."""
    inactive: int
    """Samples without an intensity."""
    tokens: int
    """Tokens of samples."""
    positions: int
    """Tokens and padding."""

    def __add__(self, other: "StepCounts") -> "StepCounts":
        """Return the counts of both batches together."""
        return StepCounts(
            {name: part + other.of_term[name] for name, part in self.of_term.items()},
            self.intensities + other.intensities,
            self.inactive + other.inactive,
            self.tokens + other.tokens,
            self.positions + other.positions,
        )


def count_step(
    batches: Sequence[MicroBatch], terms: Sequence[LossTerm], data_group: dist.ProcessGroup
) -> StepCounts:
    """Count the micro-batches of this rank and sum over the data-parallel ranks.

    One all-reduce for all terms; every rank of ``data_group`` must call it. Context-parallel ranks
    have the same sequences, still whole, and count them in groups of their own.
    """
    parts = [[_count_shared(batch), *(term.counts(batch) for term in terms)] for batch in batches]
    sizes = [len(part) for part in parts[0]]
    counts = torch.stack([torch.cat(part) for part in parts]).sum(0).to(device())
    dist.all_reduce(counts, group=data_group)
    shared, *of_terms = counts.cpu().split(sizes)
    by_name = {term.name: part for term, part in zip(terms, of_terms, strict=True)}
    return StepCounts(by_name, *(int(value) for value in shared))


def _count_shared(batch: MicroBatch) -> Tensor:
    counts = [
        sum(len(segment.terms) for segment in batch.segments),
        sum(not segment.terms for segment in batch.segments),
        batch.num_tokens,
        batch.tokens.numel(),
    ]
    return torch.tensor(counts, dtype=torch.float64)
