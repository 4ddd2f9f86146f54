"""Measures the model that is named, behind the flags of tools/measure_intensity.py."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from megatron_aia.aia.roles import AIA_TASK_OF_NAME
from megatron_aia.measurement.options import (
    MeasuredModelOptions,
    MeasureOptions,
    check_model_options,
)
from megatron_aia.measurement.own_intensity import measure_own
from megatron_aia.measurement.own_model import OwnModel, open_own_model
from megatron_aia.measurement.samples import choose_samples
from megatron_aia.measurement.summary import (
    Measurement,
    check_enough,
    check_new_folder,
    write_measurement,
)
from megatron_aia.models.layers import attention_method
from megatron_aia.runtime.device import device_name, has_cuda
from megatron_aia.runtime.optional import import_optional
from megatron_aia.runtime.parallel import broadcast_failure, leave_process_group
from megatron_aia.shards.index import open_index


def measure_model(options: MeasureOptions, world_size: int) -> str:
    """Measure a model; every rank calls this.

    Returns:
        Lines for the user.

    Raises:
        ValueError: on every rank; one line with a remedy.
    """
    check_model_options(options, world_size)
    check_new_folder(options.output)
    options = with_dtype(options)
    return _measure_own(options, world_size) if options.load else _measure_hf(options)


def with_dtype(options: Any) -> Any:
    """Return the options of a model with their type filled in."""
    return replace(options, dtype=options.dtype or ("bf16" if has_cuda() else "fp32"))


def _measure_hf(options: MeasureOptions) -> str:
    import_optional("transformers", "hf")
    from megatron_aia.measurement.hf_model import measure_hf
    from megatron_aia.measurement.hf_open import open_hf_model

    index = open_index(options.data_path)
    hf = open_hf_model(options)
    asked = [AIA_TASK_OF_NAME[name] for name in options.task]
    chosen = choose_samples(index, options.samples, asked, hf.reader.tasks)
    with tqdm(total=sum(map(len, chosen.values())), unit="sample", disable=None) as bar:
        found = measure_hf(hf, options.model_name, index, chosen, bar.update)
    method = "exact, through Transformers' attention interface (sdpa)"
    known = {"config_hash": hf.config_hash, "method": method, "prompts": hf.reader.prompts}
    return _write(options, found, known, ("torch", "transformers"))


def _measure_own(options: MeasureOptions, world_size: int) -> str:
    index = open_index(options.data_path)
    asked = [AIA_TASK_OF_NAME[name] for name in options.task]
    chosen = choose_samples(index, options.samples, asked)
    model = open_own_model(options, world_size)
    name = own_name(options, model)
    total, is_first = sum(map(len, chosen.values())), dist.get_rank() == 0
    with tqdm(total=total, unit="sample", disable=None if is_first else True) as bar:
        found = measure_own(model, name, index, chosen, bar.update)
    text, error = "", None
    if is_first:
        dtype = next(model.chunks[0].parameters()).dtype
        method = attention_method(model.config, dtype, model.parallel.tensor_size)
        known = {"config_hash": model.config_hash, "iteration": model.iteration}
        known["method"] = f"the attention of training, {method}"
        try:
            text = _write(options, found, known, ("torch", "megatron-core"), name)
        except (ValueError, OSError) as caught:
            error = ValueError(str(caught))
    broadcast_failure(error, model.parallel.control)
    leave_process_group()
    return text


def own_name(options: MeasuredModelOptions, model: OwnModel) -> str:
    """Return what a checkpoint is called in files and figures."""
    iteration = f"-{model.iteration}" if model.iteration else ""
    return options.name or options.model_name + iteration


def _write(
    options: MeasureOptions,
    found: Measurement,
    known: Mapping[str, Any],
    packages: tuple[str, ...],
    name: str | None = None,
) -> str:
    check_enough(found)
    conditions = {
        "model": name or options.model_name,
        **known,
        **describe_conditions(options, packages),
    }
    summary = write_measurement(options.output, found, conditions)
    lines = _describe(summary)
    files = f"wrote {options.output}/intensity.jsonl, {options.output}/summary.json"
    return "\n".join([*lines, files])


def describe_conditions(options: MeasuredModelOptions, packages: tuple[str, ...]) -> dict[str, Any]:
    """Return device, versions and flags, on which numbers may depend."""
    flags = {key: value for key, value in asdict(options).items() if value is not None}
    return {
        "device": device_name(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "flags": {key: str(flags[key]) for key in flags},
    }


def _describe(summary: Mapping[str, Any]) -> list[str]:
    """Return two lines a task."""
    lines = []
    for task, found in summary["tasks"].items():
        left_out = "".join(f"; {count} {reason}" for reason, count in found["inactive"].items())
        total = found["samples"] + sum(found["inactive"].values())
        known = [mean for mean in found["mean"] if mean is not None]
        error = found["largest_standard_error"]
        lines.append(f"{task}: {found['samples']} of {total} samples measured{left_out}")
        lines.append(
            f"mean {sum(known) / len(known):.3f}, largest standard error "
            f"{'-' if error is None else format(error, '.3f')}"
        )
    return lines
