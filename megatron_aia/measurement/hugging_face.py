"""Measure a Transformers model on understanding samples of a data folder."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)

from megatron_aia.aia.roles import Task
from megatron_aia.analysis.records import task_name
from megatron_aia.measurement.curves import SampleIntensity
from megatron_aia.measurement.options import Dtype
from megatron_aia.measurement.processor_inputs import (
    InactiveSampleError,
    MeasuredInputs,
    image_token_ids,
    understanding_inputs,
)
from megatron_aia.measurement.recorder import IntensityRecorder
from megatron_aia.measurement.summary import Measurement
from megatron_aia.runtime.device import device
from megatron_aia.shards.index import ShardIndex
from megatron_aia.shards.raw_sample import CorruptSampleError, RawSample

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_ANY_CODE = 1 << 16
"""Codes are not read here, so each that a shard can hold is allowed."""


def load_model(folder: Path, dtype: Dtype) -> tuple[PreTrainedModel, Any]:
    """Load a model and its processor from a folder; nothing is fetched, none of its code runs.

    Raises:
        ValueError: the folder is missing, or Transformers knows no such model or no processor.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"--hf-path {folder}: there is no config.json in it")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        reads_images = type(config) in AutoModelForImageTextToText._model_mapping
        auto = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
        model: Any = auto.from_pretrained(folder, dtype=_DTYPES[dtype], local_files_only=True)
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--hf-path {folder} cannot be loaded: {error}") from error
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(f"--hf-path {folder}: its processor has no chat template")
    return model.to(device()).eval(), processor


def config_hash(model: PreTrainedModel) -> str:
    """Return twelve digits that tell configurations apart; names of folders do not count."""
    text = model.config.to_json_string(use_diff=False)
    lines = [line for line in text.splitlines() if '"_name_or_path"' not in line]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def choose_samples(index: ShardIndex, task: Task, count: int) -> list[int]:
    """Return the numbers of ``count`` samples of a task, spread evenly over the folder.

    Raises:
        ValueError: there is none.
    """
    numbers = np.flatnonzero(index.tasks == task)
    if not len(numbers):
        raise ValueError(f"{index.folder} holds no samples of {task_name(task)}")
    places = np.arange(min(count, len(numbers))) * len(numbers) // min(count, len(numbers))
    return [int(number) for number in numbers[places]]


def measure_understanding(
    model: PreTrainedModel,
    processor: Any,
    name: str,
    index: ShardIndex,
    numbers: Sequence[int],
    image_ids: Sequence[int] = (),
    max_length: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Measurement:
    """Measure how much answers attend to images, a sample at a time.

    Args:
        model: as :func:`load_model` returns it.
        processor: the same.
        name: of the model, for the records.
        index: of the data folder.
        numbers: samples of it.
        image_ids: ids of image tokens; () for those that the configuration names.
        max_length: most tokens of a sample; None for the positions of the model.
        progress: told the number of samples that are done.

    Raises:
        ValueError: the model cannot be measured.
    """
    recorder = IntensityRecorder(model)
    ids = tuple(image_ids) or image_token_ids(model.config)
    most = max_length or int(model.config.get_text_config().max_position_embeddings)
    digest, task = config_hash(model), task_name(Task.UNDERSTANDING)
    samples: list[SampleIntensity] = []
    inactive: dict[str, str] = {}
    for done, number in enumerate(numbers, start=1):
        try:
            raw = index.read(number, _ANY_CODE)
            found = understanding_inputs(processor, raw, ids, most)
        except InactiveSampleError as error:
            inactive[index.key(number)] = str(error)
        except CorruptSampleError:
            inactive[index.key(number)] = "corrupt"
        else:
            values = recorder.measure(_on_device(found.inputs, model), [found.term])[0].tolist()
            intensity = [
                v if layer in recorder.attending else None for layer, v in enumerate(values)
            ]
            samples.append(_record(name, digest, task, raw, found, intensity))
        progress(done)
    return Measurement(tuple(samples), {task: inactive})


def _on_device(inputs: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Move tensors to the model; those of floating point, as pictures, take its type."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }


def _record(
    name: str,
    digest: str,
    task: str,
    raw: RawSample,
    found: MeasuredInputs,
    intensity: Sequence[float | None],
) -> SampleIntensity:
    return SampleIntensity(
        model=name,
        config_hash=digest,
        task=task,
        sample=raw.key,
        intensity=tuple(intensity),
        queries=len(found.term.queries),
        keys=len(found.term.keys),
        tokens=int(found.inputs["input_ids"].shape[1]),
        images=found.images,
    )
