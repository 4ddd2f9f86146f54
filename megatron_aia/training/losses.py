"""The next-token loss and its normalisers, counted over the global batch before the first forward.

Because nothing is averaged later, the loss and every gradient are plain sums over micro-batches and
data- and context-parallel ranks, and the same numbers in every layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

from megatron_aia.aia.roles import NUM_TASKS
from megatron_aia.data.batch import MicroBatch
from megatron_aia.runtime.device import device

Normalizer = Literal["task", "token", "sample"]


@dataclass(frozen=True)
class StepCounts:
    """What the normalisers of one step are made of, over the global batch.

    N_task, W_task and A of the loss: see ``docs/aia.md``.
    """

    samples: torch.Tensor
    """float64 ``[NUM_TASKS]``: samples of each task that have a label."""
    label_weight: torch.Tensor
    """float64 ``[NUM_TASKS]``: sum of label weights of each task."""
    terms: int
    """Intensities of both AIA tasks (a sample with both tasks has two)."""
    inactive: int
    """Samples without an intensity."""
    tokens: int
    """Tokens of samples."""
    positions: int
    """Tokens and padding."""


def count_step(batches: Sequence[MicroBatch], data_group: dist.ProcessGroup) -> StepCounts:
    """Count the micro-batches of this rank and sum over the data-parallel ranks.

    One all-reduce of 2 * NUM_TASKS + 4 numbers; every rank of ``data_group`` must call it.
    Context-parallel ranks have the same rows, still whole, and count them in groups of their own.
    """
    samples = torch.zeros(NUM_TASKS, dtype=torch.float64)
    weights = torch.zeros(NUM_TASKS, dtype=torch.float64)
    terms = inactive = tokens = positions = 0
    for batch in batches:
        labelled = _label_weight_by_sample(batch) > 0
        tasks = torch.tensor(batch.tasks, dtype=torch.long)
        samples += torch.bincount(tasks[labelled], minlength=NUM_TASKS)
        weights.index_add_(0, batch.label_tasks.flatten(), batch.label_weights.flatten().double())
        terms += sum(len(segment.terms) for segment in batch.segments)
        inactive += sum(not segment.terms for segment in batch.segments)
        tokens += batch.num_tokens
        positions += batch.tokens.numel()
    scalars = torch.tensor([terms, inactive, tokens, positions], dtype=torch.float64)
    counts = torch.cat([samples, weights, scalars]).to(device())
    dist.all_reduce(counts, group=data_group)
    samples, weights, scalars = counts.cpu().split([NUM_TASKS, NUM_TASKS, 4])
    return StepCounts(samples, weights, *(int(value) for value in scalars))


def token_coefficients(
    batch: MicroBatch, counts: StepCounts, normalizer: Normalizer
) -> torch.Tensor:
    """Return c ``[b, s]`` (fp32) so that the next-token loss of the step is the sum of c * nll.

    ``task``: (N_task / N) * w_t / W_task, every task weighs by its share of samples.
    ``token``: w_t / W, one mean over all labels.
    ``sample``: w_t / (N * W_sample), the mean over samples of each sample's own mean.
    """
    weights = batch.label_weights.double()
    total_samples = counts.samples.sum().clamp(min=1)
    if normalizer == "task":
        by_task = counts.samples / counts.label_weight.clamp(min=1e-12) / total_samples
        scale = by_task[batch.label_tasks]
    elif normalizer == "token":
        scale = 1.0 / counts.label_weight.sum().clamp(min=1e-12)
    else:
        by_sample = 1.0 / _label_weight_by_sample(batch).clamp(min=1e-12) / total_samples
        padded = torch.cat([by_sample, by_sample.new_zeros(1)])  # padding is segment -1
        scale = padded[batch.segment_ids]
    return (weights * scale).float()


def _label_weight_by_sample(batch: MicroBatch) -> torch.Tensor:
    """Return float64 ``[samples]`` sums of label weights of one micro-batch."""
    sums = torch.zeros(len(batch.segments) + 1, dtype=torch.float64)
    sums.index_add_(0, batch.segment_ids.flatten() + 1, batch.label_weights.flatten().double())
    return sums[1:]
