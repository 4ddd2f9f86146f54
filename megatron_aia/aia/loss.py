"""The AIA loss of one intensity and its derivative (Eq. 2 and 3).

The derivative is written out, not left to autograd: the inject node needs it in the backward pass,
where only the reduced value of the intensity is at hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Union

import torch
from torch import Tensor

from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import Task


def huber(x: Tensor, delta: Union[Tensor, float]) -> Tensor:
    """Return x^2 / 2 where |x| <= delta and delta |x| - delta^2 / 2 elsewhere (Eq. 2)."""
    return torch.where(x.abs() <= delta, x * x / 2, delta * x.abs() - delta * delta / 2)


def huber_gradient(x: Tensor, delta: Union[Tensor, float]) -> Tensor:
    """Return d huber / dx, which is x clipped to [-delta, delta]."""
    limit = torch.as_tensor(delta, dtype=x.dtype, device=x.device)
    return torch.clamp(x, -limit, limit)


def mse(x: Tensor) -> Tensor:
    """Return x^2, the penalty of the ablation."""
    return x * x


def mse_gradient(x: Tensor) -> Tensor:
    """Return d mse / dx."""
    return 2 * x


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

    def loss(self, intensity: Tensor, tasks: Sequence[Task], layer: int) -> Tensor:
        """Return each term's share of the loss, lambda / (L A) * penalty(I - T).

        Args:
            intensity: ``[n]``, I of Eq. 1, reduced over all ranks that share a sample.
            tasks: task of each term.
            layer: 0-based layer of the whole model.

        Returns:
            ``[n]`` of the intensity's dtype; the sum over terms, layers, micro-batches and
            data-parallel ranks is the AIA loss of the step.
        """
        target, delta, weight = self._constants(intensity, tasks, layer)
        distance = intensity - target
        return weight * (huber(distance, delta) if self.penalty == "huber" else mse(distance))

    def gradient(self, intensity: Tensor, tasks: Sequence[Task], layer: int) -> Tensor:
        """Return d loss / d intensity of each term, ``[n]``; arguments as in :meth:`loss`."""
        target, delta, weight = self._constants(intensity, tasks, layer)
        distance = intensity - target
        if self.penalty == "huber":
            return weight * huber_gradient(distance, delta)
        return weight * mse_gradient(distance)

    def _constants(self, like: Tensor, tasks: Sequence[Task], layer: int) -> Tensor:
        """Target, threshold and weight of each term, ``[3, n]``, sent to the device at once."""
        scale = 1 / (self.num_layers * self.num_active) if self.num_active else 0.0
        columns = [
            [float(self.targets.target[task][layer]) for task in tasks],
            [float(self.targets.delta[task][layer]) for task in tasks],
            [self.lambdas[task] * scale for task in tasks],
        ]
        return torch.tensor(columns, dtype=like.dtype, device=like.device)
