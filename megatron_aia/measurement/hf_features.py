"""Mean hidden states of spans after every decoder layer of a Transformers model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from megatron_aia.aia.roles import AIATerm, Task
from megatron_aia.measurement.alignment import TaskFeatures
from megatron_aia.measurement.hf_model import HFModel
from megatron_aia.measurement.samples import InactiveSampleError, SampleFolder, spans_of


@dataclass(frozen=True)
class Span:
    """Positions whose hidden states are averaged: int64, in a row of the batch, not empty."""

    row: int
    positions: Tensor


@torch.no_grad()
def mean_features(
    model: PreTrainedModel, inputs: Mapping[str, Any], spans: Sequence[Span]
) -> Tensor:
    """Run one forward pass and average the states behind each layer, before the final norm.

    Args:
        model: any whose decoder has a list ``layers``.
        inputs: of its ``forward``: all that its processor returns.
        spans: what is averaged.

    Returns:
        float32 ``[spans, layers, hidden size]`` on the CPU.

    Raises:
        ValueError: the decoder has no list of layers, or one did not run exactly once.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(model).__name__}: its decoder has no list of layers")
    found: list[list[Tensor]] = [[] for _ in layers]

    def keep(place: int, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        means = [
            states[span.row, span.positions.to(states.device)].float().mean(0) for span in spans
        ]
        found[place].append(torch.stack(means).cpu())

    def hook_of(place: int) -> Callable[..., None]:
        return lambda _module, _inputs, output: keep(place, output)

    hooks = [layer.register_forward_hook(hook_of(place)) for place, layer in enumerate(layers)]
    was_training = model.training
    try:
        model.eval()(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    if any(len(calls) != 1 for calls in found):
        once = sum(len(calls) == 1 for calls in found)
        raise ValueError(f"{type(model).__name__}: {once} of {len(found)} layers ran once")
    return torch.stack([calls[0] for calls in found], dim=1)


def collect_hf_features(
    hf: HFModel,
    index: SampleFolder,
    chosen: Mapping[Task, Sequence[int]],
    progress: Callable[[int], None] = lambda count: None,
) -> list[TaskFeatures]:
    """Return the features of samples by task; arguments and errors are those of ``measure_hf``."""
    found = []
    for task, numbers in chosen.items():
        rows: list[Tensor] = []
        inactive: dict[str, str] = {}
        for number in numbers:
            try:
                sample = hf.reader.read(index, number, task)
                term = AIATerm(task, sample.term.queries.numpy(), sample.term.keys.numpy())
                spans = [Span(0, torch.from_numpy(positions)) for positions in spans_of(term)]
            except InactiveSampleError as error:
                inactive[index.key(number)] = str(error)
            else:
                rows.append(mean_features(hf.model, hf.on_device(sample.inputs), spans))
            progress(1)
        found.append(TaskFeatures(task, rows, inactive))
    return found
