"""Carries the terms of one micro-batch through the model and adds their gradient in backward.

An identity on the attention output holds the sums of a layer in the graph. Forward only starts the
reduction of the sums; backward waits for it, because only the derivative needs the intensity.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Optional, Union

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_aia.aia.loss import AIALoss
from megatron_aia.aia.roles import AIATerm, Segment, Task
from megatron_aia.runtime.device import send

BranchLayer = tuple[int, int]
"""Branch, 0 in a model that does not fork, and 0-based layer of the whole model."""


class PendingSum:
    """A tensor that may still be on its way through an all-reduce (SUM)."""

    def __init__(self, value: Tensor, group: Optional[dist.ProcessGroup]) -> None:
        """Start the reduction of ``value``, in place; without a group it is already the sum."""
        self._value = value
        self._work: Optional[dist.Work] = None
        if group is not None and group.size() > 1:
            self._work = dist.all_reduce(value, group=group, async_op=True)

    def wait(self) -> Tensor:
        """Return the sum, once it is there."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._value


@dataclass(eq=False)
class AIAContext:
    """What every layer needs to measure and align the intensities of one micro-batch.

    megatron-core hands it to each core attention as ``attention_bias``. Terms are numbered 0 to
    n - 1 in the order of the segments and of the terms within a segment.
    """

    segments: tuple[Segment, ...]
    """Samples of the micro-batch, on all ranks that share it."""
    objective: Optional[AIALoss]
    """The step's loss; None measures without training."""
    num_heads: int
    """Query heads of the whole model, on all tensor-parallel ranks."""
    group: Optional[dist.ProcessGroup] = None
    """Ranks that hold heads or tokens of the same samples; None in a single process."""
    intensities: dict[BranchLayer, PendingSum] = field(default_factory=dict, init=False, repr=False)
    """Recorded sums; read them with :meth:`intensity`."""
    cache: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)
    """What kernels derive from the segments, such as index tensors; lives with the micro-batch."""

    @cached_property
    def terms(self) -> tuple[AIATerm, ...]:
        """All terms of the micro-batch."""
        return tuple(term for segment in self.segments for term in segment.terms)

    @cached_property
    def term_tasks(self) -> tuple[Task, ...]:
        """Task of each term."""
        return tuple(term.task for term in self.terms)

    @cached_property
    def query_counts(self) -> tuple[int, ...]:
        """Queries |Q| of each term."""
        return tuple(len(term.queries) for term in self.terms)

    @property
    def measured(self) -> tuple[BranchLayer, ...]:
        """Layers measured so far, ascending."""
        return tuple(sorted(self.intensities))

    def attach(self, output: Tensor, sums: Tensor, layer: int, branch: int = 0) -> Tensor:
        """Record a layer's sums and tie the gradient of its loss to the attention output.

        A layer that runs twice, as under activation recompute, counts once: its record is replaced.

        Args:
            output: attention output of the layer, any shape.
            sums: ``[n]``, attention probability summed over this rank's heads and queries and over
                the keys of each term (the triple sum of Eq. 1).
            layer: 0-based layer of the whole model: layers that a token passes before it.
            branch: number among the layers of that depth, where the model forks.

        Returns:
            ``output`` unchanged in value; its backward adds dL/dI / (H |Q|) to the gradient of
            ``sums``. Local gradients added over the group are the gradient of the sample's loss.
        """
        if not self.terms:
            return output
        dtype = torch.float64 if sums.dtype == torch.float64 else torch.float32
        pending = PendingSum(sums.detach().to(dtype, copy=True), self.group)
        self.intensities[branch, layer] = pending
        objective = self.objective
        if objective is None or not (torch.is_grad_enabled() and sums.requires_grad):
            return output

        def gradient() -> Tensor:
            reduced = pending.wait()
            return objective.gradient(
                reduced, self._gradient_constants(objective, reduced)[:, layer]
            )

        attached: Tensor = _Inject.apply(output, sums, gradient)
        return attached

    def intensity(self, layer: int, branch: int = 0) -> Tensor:
        """Return I of Eq. 1 at a layer, ``[n]`` float32 (float64 for float64 sums), reduced.

        Raises:
            KeyError: the layer has not run yet, or not on this pipeline stage.
        """
        sums = self.intensities[branch, layer].wait()
        return sums / self._head_query_pairs(sums)

    def measurements(self) -> Optional[tuple[Tensor, Tensor]]:
        """Return the intensities of the layers in ``measured``, and what each adds to the loss.

        Returns:
            Two of ``[layers, n]``, the second zero without an objective; None if no layer has
            measured.
        """
        if not self.intensities:
            return None
        sums = torch.stack([self.intensities[place].wait() for place in self.measured])
        intensity = sums / self._head_query_pairs(sums)
        if self.objective is None:
            return intensity, torch.zeros_like(intensity)
        layers = self._sent("layers", intensity, [layer for _, layer in self.measured], torch.int64)
        constants = self._constants(self.objective, intensity).index_select(1, layers)
        return intensity, self.objective.loss(intensity, constants)

    def loss(self, layer: int, branch: int = 0) -> Tensor:
        """Return what each intensity of a layer adds to the loss of the step, ``[n]``.

        Raises:
            KeyError: as :meth:`intensity`.
        """
        assert self.objective is not None, "nothing is trained"
        intensity = self.intensity(layer, branch)
        return self.objective.loss(intensity, self._constants(self.objective, intensity)[:, layer])

    def _head_query_pairs(self, like: Tensor) -> Tensor:
        """H |Q| of each term, ``[n]``."""
        return self._sent("head_query_pairs", like, self._pairs)

    @property
    def _pairs(self) -> list[int]:
        return [self.num_heads * queries for queries in self.query_counts]

    def _gradient_constants(self, objective: AIALoss, like: Tensor) -> Tensor:
        made = partial(objective.gradient_constants, self.term_tasks, self._pairs)
        return self._sent("gradient_constants", like, made)

    def _constants(self, objective: AIALoss, like: Tensor) -> Tensor:
        """Target, threshold and weight of all layers, ``[3, L, n]``."""
        return self._sent("constants", like, partial(objective.constants, self.term_tasks))

    def _sent(
        self,
        name: str,
        like: Tensor,
        values: Union[list[int], Callable[[], Tensor]],
        dtype: Optional[torch.dtype] = None,
    ) -> Tensor:
        """Return host values on the device of ``like``; they are sent once a micro-batch."""
        key = (name, like.device, dtype or like.dtype)
        if key not in self.cache:
            made = values() if callable(values) else torch.tensor(values)
            self.cache[key] = send(made.to(dtype or like.dtype), like.device)
        value: Tensor = self.cache[key]
        return value


class _Inject(torch.autograd.Function):
    """Identity on ``output``; backward gives ``sums`` the gradient computed by ``gradient()``."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, sums: Tensor, gradient: Callable[[], Tensor]) -> Tensor:
        ctx.gradient = gradient
        ctx.sums_dtype = sums.dtype
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad_output, ctx.gradient().to(ctx.sums_dtype), None
