"""Sums intensities and losses over micro-batches, ranks and steps, for the log."""

from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.loss import AIALoss
from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.runtime.device import send

_NUM_QUANTITIES = 4
_INTENSITY, _SQUARE, _LOSS, _COUNT = range(_NUM_QUANTITIES)


@dataclass(frozen=True)
class IntensityReport:
    """Means over the intensities since the tracker was cleared."""

    intensity: dict[Task, np.ndarray]
    """Mean I of each layer, float64 ``[layers]``; NaN where nothing was measured."""
    std: dict[Task, np.ndarray]
    """Standard deviation (n - 1) of I over samples, the same; NaN for fewer than two."""
    loss: dict[Task, float]
    """What the task added to the loss of a step (Eq. 3, lambda included), mean over steps."""
    count: dict[Task, int]
    """Number of intensities of a layer: active samples, over all steps and ranks summed."""


class IntensityTracker:
    """Collects the intensities of micro-batches until it is cleared.

    The sums stay on the device of the intensities, so adding does not stall a GPU.
    """

    def __init__(self, num_layers: int) -> None:
        """``num_layers`` counts the layers of the whole model."""
        self._shape = (_NUM_QUANTITIES, len(AIA_TASKS), num_layers)
        self.clear()

    def clear(self) -> None:
        """Forget everything; also called after a step that was skipped."""
        self._sums = torch.zeros(self._shape, dtype=torch.float64)
        self._num_steps = 0
        self._objective: Optional[AIALoss] = None
        self._sent: dict[tuple[tuple[int, ...], tuple[Task, ...]], tuple[Tensor, Tensor]] = {}

    def add(self, aia: AIAContext) -> None:
        """Add one micro-batch, after its backward: recomputed layers measure only there.

        Steps are told apart by their objective, of which there is one a step.
        """
        if aia.objective is not None and aia.objective is not self._objective:
            self._objective = aia.objective
            self._num_steps += 1
        measurements = aia.measurements()
        if measurements is None:
            return
        intensity, loss = measurements
        intensity, loss = intensity.double(), loss.double()
        values = torch.stack([intensity, intensity.square(), loss, torch.ones_like(loss)])
        self._sums = self._sums.to(values.device)
        layers, tasks = self._places(aia, values.device)
        added = values.new_zeros((_NUM_QUANTITIES, values.shape[1], len(AIA_TASKS)))
        added.index_add_(2, tasks, values)
        self._sums.index_add_(2, layers, added.transpose(1, 2).contiguous())

    def _places(self, aia: AIAContext, device: torch.device) -> tuple[Tensor, Tensor]:
        """Layers of the measurements and tasks of their terms, int64; sent once for each kind."""
        key = (tuple(layer for _, layer in aia.measured), aia.term_tasks)
        if key not in self._sent:
            tasks = torch.tensor([AIA_TASKS.index(task) for task in aia.term_tasks])
            self._sent[key] = (send(torch.tensor(key[0]), device), send(tasks, device))
        return self._sent[key]

    def totals(self) -> Tensor:
        """Return the sums as one float64 vector, to be summed over data and pipeline ranks.

        Counts are kept by layer, and a stage holds zeros for layers it does not own, so a sum over
        stages is right. Tensor- and context-parallel ranks hold equal values: do not sum over them.
        """
        return self._sums.flatten().clone()

    def load_totals(self, vector: Tensor) -> None:
        """Replace the sums by a reduced vector of :meth:`totals`; the number of steps stays."""
        self._sums = vector.detach().to(torch.float64).reshape(self._shape).clone()

    def report(self) -> IntensityReport:
        """Return the means of what was added or loaded."""
        sums = self._sums.cpu().numpy()
        counts = sums[_COUNT]
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums[_INTENSITY] / counts
            # A rounding below 0 is 0.
            squares = np.maximum(sums[_SQUARE] - counts * means**2, 0)
            deviations = np.where(counts > 1, np.sqrt(squares / (counts - 1)), np.nan)
        steps = max(self._num_steps, 1)
        return IntensityReport(
            intensity={task: means[i] for i, task in enumerate(AIA_TASKS)},
            std={task: deviations[i] for i, task in enumerate(AIA_TASKS)},
            loss={task: float(sums[_LOSS, i].sum()) / steps for i, task in enumerate(AIA_TASKS)},
            count={task: round(counts[i].max()) for i, task in enumerate(AIA_TASKS)},
        )
