"""Loss terms: what a family learns, as sums whose normalisers are known before the first forward.

Because nothing is averaged later, a term and all of its gradients are plain sums over micro-batches
and data- and context-parallel ranks, and the same numbers in every layout.

The AIA term is none of these: it lives inside the layers (``megatron_aia.aia``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from megatron_aia.aia.roles import NUM_TASKS
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.targets import NEXT_TOKEN, BatchTarget

Outputs = Mapping[str, Tensor]
"""What the last pipeline stage computes, by name; each family has its own names."""
Normalization = Literal["task", "task_mean", "token", "sample"]


class LossTerm(Protocol):
    """One term of the loss, of which the step knows no more than this.

    The step calls ``counts`` for every micro-batch of whole sequences, sums the results over the
    global batch, and gives the sums to ``coefficients``. The loss is the sum of coefficient x
    value.
    """

    @property
    def name(self) -> str:
        """Its name in the log."""

    @property
    def target(self) -> str:
        """The target that it learns; it has a coefficient and a value for each entry."""

    @property
    def needs_teacher(self) -> bool:
        """Whether ``values`` reads the outputs of the frozen teacher."""

    def counts(self, batch: MicroBatch) -> Tensor:
        """Count a micro-batch: float64 ``[k]`` on the host, of the same ``k`` for every one."""

    def coefficients(self, batch: MicroBatch, counts: Tensor) -> Tensor:
        """Return fp32 ``[n]`` on the host: weights and normalisers of the entries of the target.

        Args:
            batch: a micro-batch of whole sequences.
            counts: of the global batch.
        """

    def values(self, outputs: Outputs, batch: MicroBatch, teacher: Outputs) -> Tensor:
        """Return the loss of each entry that this rank holds, ``[n]``.

        Args:
            outputs: of the model.
            batch: the part of the micro-batch that this rank holds.
            teacher: outputs of the teacher for the same part; empty without one.
        """

    def weight_by_task(self, counts: Tensor) -> Tensor:
        """Return float64 ``[NUM_TASKS]``: a mean in the log is sum of weight x value over this."""


@dataclass(frozen=True)
class TargetTerm:
    """A term whose coefficients follow from the weights of its target; ``values`` is to be added.

    The term of a step is ``weight`` times one of (w: weight of an entry, W: sum of weights,
    N: samples with an entry, all of the global batch)

    - ``task``: sum of (N_task / N) * w / W_task * value; a task weighs by its share of samples,
    - ``task_mean``: sum of w / W_task * value; tasks weigh alike, whatever their samples,
    - ``token``: sum of w / W * value, one mean over all entries,
    - ``sample``: sum of w / (N * W_sample) * value, the mean of each sample's own mean.
    """

    name: str
    target: str
    weight: float = 1.0
    normalization: Normalization = "task"
    needs_teacher: bool = False

    def counts(self, batch: MicroBatch) -> Tensor:
        """Return samples with an entry by task, then sums of weights by task."""
        target = batch.targets[self.target]
        tasks = torch.tensor(batch.tasks, dtype=torch.long)
        labelled = _weight_by_sample(target, len(tasks)) > 0
        samples = torch.bincount(tasks[labelled], minlength=NUM_TASKS).double()
        weights = torch.zeros(NUM_TASKS, dtype=torch.float64)
        weights.index_add_(0, target.tasks, target.weights.double())
        return torch.cat([samples, weights])

    def coefficients(self, batch: MicroBatch, counts: Tensor) -> Tensor:
        """See ``LossTerm``."""
        target = batch.targets[self.target]
        samples, weights = counts.split(NUM_TASKS)
        num_samples = samples.sum().clamp(min=1)
        if self.normalization == "task":
            scale = (samples / weights.clamp(min=1e-12) / num_samples)[target.tasks]
        elif self.normalization == "task_mean":
            scale = (1.0 / weights.clamp(min=1e-12))[target.tasks]
        elif self.normalization == "token":
            scale = 1.0 / weights.sum().clamp(min=1e-12)
        else:
            by_sample = _weight_by_sample(target, len(batch.tasks)).clamp(min=1e-12)
            scale = (1.0 / by_sample / num_samples)[target.samples]
        return (target.weights.double() * scale * self.weight).float()

    def weight_by_task(self, counts: Tensor) -> Tensor:
        """See ``LossTerm``."""
        return counts.split(NUM_TASKS)[1]


@dataclass(frozen=True)
class NextToken(TargetTerm):
    """Negative log-likelihood of the labels. Reads the output ``nll``, ``[b, s]``."""

    name: str = "ntp"
    target: str = NEXT_TOKEN

    def values(self, outputs: Outputs, batch: MicroBatch, teacher: Outputs) -> Tensor:
        """See ``LossTerm``."""
        return outputs["nll"].flatten().index_select(0, batch.targets[self.target].positions)


def _weight_by_sample(target: BatchTarget, num_samples: int) -> Tensor:
    """Return the sum of weights of each sample of a micro-batch, float64 ``[num_samples]``."""
    sums = torch.zeros(num_samples, dtype=torch.float64)
    return sums.index_add_(0, target.samples, target.weights.double())
