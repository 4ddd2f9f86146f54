"""Intensities of a checkpoint of this project, by the attention that trains it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.roles import Task
from megatron_aia.analysis.records import task_name
from megatron_aia.measurement.curves import SampleIntensity
from megatron_aia.measurement.own_model import OwnModel
from megatron_aia.measurement.rounds import run_rounds
from megatron_aia.measurement.samples import ReadSample, SampleFolder, read_sample
from megatron_aia.measurement.summary import Measurement


def measure_own(
    model: OwnModel,
    name: str,
    index: SampleFolder,
    chosen: Mapping[Task, Sequence[int]],
    progress: Callable[[int], None] = lambda count: None,
) -> Measurement:
    """Measure samples; every rank calls this.

    Args:
        model: the checkpoint.
        name: of the model, for the records.
        index: of the data folder.
        chosen: numbers of samples by task.
        progress: told of more samples that are done.

    Returns:
        Complete on rank 0.

    Raises:
        ValueError: on every rank, if a sample cannot be read.
    """
    samples: list[SampleIntensity] = []
    inactive: dict[str, dict[str, str]] = {}
    for task, numbers in chosen.items():
        read = partial(
            _read, index, task=task, model=model, codebook_size=model.config.model.codebook_size
        )
        parts: dict[int, list[dict[str, Any]]] = {}
        reasons: dict[int, str] = {}
        for found, left_out in run_rounds(model.parallel, numbers, read, partial(_look, model)):
            for number, part in found:
                parts.setdefault(number, []).append(part)
            reasons |= left_out
            progress(len({number for number, _ in found}) + len(left_out))
        if dist.get_rank() == 0:
            samples += [
                _join(model, name, task, index.key(number), parts[number])
                for number in numbers
                if number in parts
            ]
        inactive[task_name(task)] = {index.key(number): why for number, why in reasons.items()}
    return Measurement(tuple(samples), inactive)


def _read(
    index: SampleFolder, number: int, task: Task, model: OwnModel, codebook_size: int
) -> ReadSample:
    return read_sample(index, number, task, model.encoder, codebook_size, model.max_length)


def _look(model: OwnModel, samples: list[ReadSample | None]) -> list[dict[str, Any] | None]:
    """Return of each sample its counts and the intensity of the layers of this stage."""
    contexts = model.forward([None if sample is None else sample.tokens for sample in samples])
    return [
        None if sample is None else _part(sample, context)
        for sample, context in zip(samples, contexts, strict=True)
    ]


def _part(sample: ReadSample, context: AIAContext) -> dict[str, Any]:
    place = context.term_tasks.index(sample.term.task)
    return {
        "layers": {
            layer: context.intensity(layer, branch)[place].item()
            for branch, layer in context.measured
        },
        "queries": len(sample.term.queries),
        "keys": len(sample.term.keys),
        "tokens": len(sample.tokens),
        "images": sample.images,
    }


def _join(
    model: OwnModel, name: str, task: Task, key: str, parts: Sequence[dict[str, Any]]
) -> SampleIntensity:
    """Put the layers of all stages together."""
    counts = {field: value for field, value in parts[0].items() if field != "layers"}
    layers = {layer: value for part in parts for layer, value in part["layers"].items()}
    assert sorted(layers) == list(range(model.config.model.num_layers)), f"{key}: {sorted(layers)}"
    return SampleIntensity(
        model=name,
        config_hash=model.config_hash,
        task=task_name(task),
        sample=key,
        intensity=tuple(layers[layer] for layer in sorted(layers)),
        **counts,
    )
