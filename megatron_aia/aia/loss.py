"""The AIA loss of one intensity and its derivative (Eq. 2 and 3).

The derivative is written out, not left to autograd: the inject node needs it in the backward pass,
where only the reduced value of the intensity is at hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Union

import numpy as np
import torch
from torch import Tensor

from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import Task


def huber(x: Tensor, delta: Union[Tensor, float]) -> Tensor:
    """Return x^2 / 2 where |x| <= delta and delta |x| - delta^2 / 2 elsewhere (Eq. 2)."""
    return torch.where(x.abs() <= delta, x * x / 2, delta * x.abs() - delta * delta / 2)


def mse(x: Tensor) -> Tensor:
    """Return x^2, the penalty of the ablation."""
    return x * x


@dataclass(frozen=True, eq=False)
class AIALoss:
    """What one optimizer step adds for its intensities: every normaliser of Eq. 3 is known here.

    One object serves all micro-batches of a step; the tracker counts steps by it.
    """

    targets: LayerTargets
    lambdas: Mapping[Task, float]
    num_layers: int
    """Decoder layers L of the whole model, on all pipeline stages."""
    num_active: int
    """Intensities A, one for each (sample, task) pair, of the global batch."""
    penalty: Literal["huber", "mse"] = "huber"

    def constants(self, tasks: Sequence[Task]) -> Tensor:
        """Return target, threshold and weight lambda / (L A) of terms: float64 ``[3, L, n]``.

        They lie on the host; a micro-batch sends those of all layers to its device at once.

        Args:
            tasks: task of each term.
        """
        scale = 1 / (self.num_layers * self.num_active) if self.num_active else 0.0
        values = np.empty((3, self.num_layers, len(tasks)))
        for term, task in enumerate(tasks):
            values[0, :, term] = self.targets.target[task]
            values[1, :, term] = self.targets.delta[task]
            values[2, :, term] = self.lambdas[task] * scale
        return torch.from_numpy(values)

    def loss(self, intensity: Tensor, constants: Tensor) -> Tensor:
        """Return each term's share of the loss, lambda / (L A) * penalty(I - T).

        Args:
            intensity: ``[..., n]``, I of Eq. 1, reduced over all ranks that share a sample.
            constants: ``[3, ..., n]``, of its layers, dtype and device; see :meth:`constants`.

        Returns:
            ``[..., n]`` of the intensity's dtype; the sum over terms, layers, micro-batches and
            data-parallel ranks is the AIA loss of the step.
        """
        target, delta, weight = constants
        distance = intensity - target
        return weight * (huber(distance, delta) if self.penalty == "huber" else mse(distance))

    def gradient_constants(self, tasks: Sequence[Task], pairs: Sequence[int]) -> Tensor:
        """Return what :meth:`gradient` computes with: float64 ``[5, L, n]``, on the host.

        Args:
            tasks: task of each term.
            pairs: H |Q| of each term, which divides its sum.
        """
        target, delta, weight = self.constants(tasks)
        if self.penalty == "mse":
            delta, weight = torch.full_like(delta, torch.inf), 2 * weight
        inverse = torch.tensor(pairs, dtype=torch.float64).reciprocal().expand_as(target)
        return torch.stack((inverse, -target, -delta, delta, weight * inverse))

    @staticmethod
    def gradient(sums: Tensor, constants: Tensor) -> Tensor:
        """Return d loss / d sum of each term: both penalties' is slope * clip(I - T).

        Args:
            sums: ``[n]``, reduced over all ranks that share a sample.
            constants: ``[5, n]``, of the layer; see :meth:`gradient_constants`.
        """
        inverse, minus_target, low, high, slope = constants
        return torch.addcmul(minus_target, sums, inverse).clamp_(low, high).mul_(slope)
