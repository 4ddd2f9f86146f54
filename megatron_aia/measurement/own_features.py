"""Mean hidden states of spans after every decoder layer of a checkpoint of this project."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.utils import unwrap_model
from torch import Tensor

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.roles import Task
from megatron_aia.measurement.alignment import TaskFeatures
from megatron_aia.measurement.own_model import OwnModel
from megatron_aia.measurement.rounds import run_rounds
from megatron_aia.measurement.samples import ReadSample, SampleFolder, read_sample, spans_of
from megatron_aia.models.lanes import without_way
from megatron_aia.runtime.context_parallel_slices import slice_tensor
from megatron_aia.runtime.device import device, send


@dataclass
class _Means:
    """Collects the states behind the layers of this rank, while hooks are on."""

    model: OwnModel
    weights: dict[AIAContext, Tensor] = field(default_factory=dict)
    """By micro-batch, float32 ``[2, tokens that this rank holds]``."""
    found: dict[AIAContext, dict[int, Tensor]] = field(default_factory=dict)
    """By micro-batch and layer, float32 ``[2, width]``: this rank's part of the means."""

    def keep(self, layer: int, kwargs: Mapping[str, Any], output: Any) -> None:
        """Called behind a layer, whose micro-batch travels as ``attention_bias``."""
        aia: AIAContext = without_way(kwargs["attention_bias"])
        states = output[0] if isinstance(output, tuple) else output
        if aia not in self.weights:
            self.weights[aia] = self._weights_of(aia, states)
        self.found.setdefault(aia, {})[layer] = self.weights[aia] @ states[:, 0].float()

    def _weights_of(self, aia: AIAContext, states: Tensor) -> Tensor:
        """Return 1 / n at the n positions of each span, of the tokens that this rank holds."""
        parallel = self.model.parallel
        shares = parallel.tensor_size if self._splits_states else 1
        length = states.shape[0] * parallel.context_size * shares
        whole = torch.zeros(2, length)
        for segment in aia.segments:
            for row, positions in enumerate(spans_of(segment.terms[0])):
                whole[row, positions] = 1 / len(positions)
        held = slice_tensor(whole, parallel.context_rank, parallel.context_size, dim=1)
        held = held.chunk(shares, dim=1)[parallel.tensor_rank if shares > 1 else 0]
        return send(held.contiguous(), device())

    def sums(self, contexts: Sequence[AIAContext]) -> Tensor:
        """Return the means ``[micro-batches, layers of this rank, 2, width]``, on the host."""
        parts = [torch.stack([self.found[a][n] for n in sorted(self.found[a])]) for a in contexts]
        means = torch.stack(parts)
        groups = self.model.parallel.groups
        dist.all_reduce(means, group=groups.tp_cp if self._splits_states else groups.cp)
        return means.cpu()

    @property
    def _splits_states(self) -> bool:
        return self.model.config.parallel.sequence_parallel and self.model.parallel.tensor_size > 1


@contextmanager
def _hooks(model: OwnModel, means: _Means) -> Iterator[None]:
    handles = []
    for chunk in map(unwrap_model, model.chunks):
        for block in chunk.blocks:
            for layer in chunk.get_submodule(block).layers:

                def keep(_module: Any, _args: Any, kwargs: Any, output: Any, number: int) -> None:
                    means.keep(number, kwargs, output)

                hook = partial(keep, number=layer.layer_number - 1)
                handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def collect_own_features(
    model: OwnModel,
    index: SampleFolder,
    chosen: Mapping[Task, Sequence[int]],
    progress: Callable[[int], None] = lambda count: None,
) -> list[TaskFeatures]:
    """Return the features of samples by task; arguments and errors are those of ``measure_own``.

    Every rank calls this. Returns complete features on rank 0.
    """
    collected = []
    for task, numbers in chosen.items():
        parts: dict[int, dict[int, Tensor]] = {}
        reasons: dict[int, str] = {}
        read = partial(_read, model, index, task)
        for found, left_out in run_rounds(model.parallel, numbers, read, partial(_look, model)):
            for number, layers in found:
                parts.setdefault(number, {}).update(layers)
            reasons |= left_out
            progress(len({number for number, _ in found}) + len(left_out))
        samples = [
            torch.stack([parts[number][layer] for layer in sorted(parts[number])], dim=1)
            for number in numbers
            if number in parts
        ]
        inactive = {index.key(number): why for number, why in reasons.items()}
        collected.append(TaskFeatures(task, samples, inactive))
    return collected


def _read(model: OwnModel, index: SampleFolder, task: Task, number: int) -> ReadSample:
    codebook_size = model.config.model.codebook_size
    sample = read_sample(index, number, task, model.encoder, codebook_size, model.max_length)
    spans_of(sample.term)
    return sample


def _look(model: OwnModel, samples: list[ReadSample | None]) -> list[dict[int, Tensor] | None]:
    """Return of each sample the features ``[2, width]`` behind the layers of this stage."""
    means = _Means(model)
    with _hooks(model, means):
        contexts = model.forward([None if s is None else s.tokens for s in samples])
    values = means.sums(contexts)
    layers = [sorted(means.found[context]) for context in contexts]
    return [
        None if sample is None else dict(zip(numbers, features.unbind(0), strict=True))
        for sample, numbers, features in zip(samples, layers, values, strict=True)
    ]
