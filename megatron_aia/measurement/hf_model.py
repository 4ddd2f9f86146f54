"""Intensities of a Transformers model, a sample at a time, with the model's own code."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedModel

from megatron_aia.aia.roles import Task
from megatron_aia.analysis.records import task_name
from megatron_aia.measurement.curves import SampleIntensity
from megatron_aia.measurement.recorder import IntensityRecorder, IntensityTerm
from megatron_aia.measurement.samples import InactiveSampleError, SampleFolder
from megatron_aia.measurement.summary import Measurement


@dataclass(frozen=True)
class MeasuredInputs:
    """One sample for ``forward``, and where its queries and keys stand."""

    inputs: Mapping[str, Any]
    """Of the model's ``forward``, for one row; on the CPU or on the model's device."""
    term: IntensityTerm
    tokens: int
    images: int
    """Looked at or drawn."""


class ReadsSamples(Protocol):
    """How a model reads the samples of a data folder."""

    @property
    def tasks(self) -> Sequence[Task]:
        """That it can be measured on."""

    @property
    def prompts(self) -> str:
        """How turns are written, for a reader of the numbers."""

    def read(self, index: SampleFolder, number: int, task: Task) -> MeasuredInputs:
        """Read a sample of a task.

        Raises:
            InactiveSampleError: it has no intensity, or is corrupt or too long.
            ValueError: it cannot be written for the model, or its shard has changed.
            OSError: its shard cannot be read.
        """


@dataclass(frozen=True)
class HFModel:
    """A model of Transformers in eval mode, and how it reads samples."""

    model: PreTrainedModel
    reader: ReadsSamples

    @property
    def config_hash(self) -> str:
        """Twelve digits that tell configurations apart; names of folders do not count."""
        text = self.model.config.to_json_string(use_diff=False)
        lines = [line for line in text.splitlines() if '"_name_or_path"' not in line]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]

    def on_device(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Move tensors to the model; those of floating point, as pictures, take its type."""
        model = self.model
        return {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }


def measure_hf(
    hf: HFModel,
    name: str,
    index: SampleFolder,
    chosen: Mapping[Task, Sequence[int]],
    progress: Callable[[int], None] = lambda count: None,
) -> Measurement:
    """Measure samples.

    Args:
        hf: the model.
        name: of the model, for the records.
        index: of the data folder.
        chosen: numbers of samples by task.
        progress: told of more samples that are done.

    Raises:
        ValueError: the model cannot be measured, or a sample cannot be read.
    """
    recorder = IntensityRecorder(hf.model)
    samples: list[SampleIntensity] = []
    inactive: dict[str, dict[str, str]] = {task_name(task): {} for task in chosen}
    for task, numbers in chosen.items():
        for number in numbers:
            try:
                found = hf.reader.read(index, number, task)
            except InactiveSampleError as error:
                inactive[task_name(task)][index.key(number)] = str(error)
            else:
                values = recorder.measure(hf.on_device(found.inputs), [found.term])[0].tolist()
                intensity = [
                    v if layer in recorder.attending else None for layer, v in enumerate(values)
                ]
                key = index.key(number)
                samples.append(_record(name, hf.config_hash, task, key, found, intensity))
            progress(1)
    return Measurement(tuple(samples), inactive)


def _record(
    name: str,
    digest: str,
    task: Task,
    key: str,
    found: MeasuredInputs,
    intensity: Sequence[float | None],
) -> SampleIntensity:
    return SampleIntensity(
        model=name,
        config_hash=digest,
        task=task_name(task),
        sample=key,
        intensity=tuple(intensity),
        queries=len(found.term.queries),
        keys=len(found.term.keys),
        tokens=found.tokens,
        images=found.images,
    )
