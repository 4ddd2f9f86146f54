"""The model and the samples that a command names, of either kind, opened on every rank."""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from megatron_aia.aia.roles import AIA_TASK_OF_NAME, Task
from megatron_aia.building.record_samples import RecordSamples
from megatron_aia.measurement.options import MeasureOptions, check_model_options
from megatron_aia.measurement.own_model import OwnModel, open_own_model
from megatron_aia.measurement.role_file import RoleFile, is_role_file
from megatron_aia.measurement.samples import SampleFolder, choose_samples
from megatron_aia.models.layers import attention_method
from megatron_aia.runtime.device import device_name, has_cuda
from megatron_aia.runtime.optional import import_optional
from megatron_aia.runtime.parallel import broadcast_failure, leave_process_group
from megatron_aia.shards.index import open_index


@dataclass(frozen=True)
class Opened:
    """What a command looks into."""

    name: str
    """Of the model, in files and figures."""
    index: SampleFolder
    chosen: dict[Task, list[int]]
    """Numbers of samples by task."""
    conditions: Mapping[str, Any]
    """What numbers may depend on."""
    own: OwnModel | None = None
    """A checkpoint of this project."""
    hf: Any = None
    """An ``HFModel``, where there is no checkpoint."""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and speaks."""
        return self.own is None or dist.get_rank() == 0

    def progress(self) -> tqdm:
        """Return a bar over all samples, shown on one rank at a terminal."""
        total = sum(map(len, self.chosen.values()))
        return tqdm(total=total, unit="sample", disable=None if self.is_first else True)

    def finish(self, write: Callable[[], str]) -> str:
        """Write on one rank, and end the process groups; every rank calls this.

        Raises:
            ValueError: on every rank, if it failed.
        """
        text, error = "", None
        if self.is_first:
            try:
                text = write()
            except (ValueError, OSError) as caught:
                error = ValueError(str(caught))
        if self.own is not None:
            broadcast_failure(error, self.own.parallel.control)
            leave_process_group()
        elif error is not None:
            raise error
        return text


def open_for(options: MeasureOptions, world_size: int) -> Opened:
    """Open what the flags name; every rank calls this.

    Raises:
        ValueError: on every rank; one line with a remedy.
    """
    check_model_options(options, world_size)
    options = replace(options, dtype=options.dtype or ("bf16" if has_cuda() else "fp32"))
    index = _open_data(options)
    asked = [AIA_TASK_OF_NAME[name] for name in options.task]
    if options.load is None:
        return _open_hf(options, index, asked)
    chosen = choose_samples(index, options.samples, asked)
    model = open_own_model(options, world_size)
    dtype = next(model.chunks[0].parameters()).dtype
    method = attention_method(model.config, dtype, model.parallel.tensor_size)
    iteration = f"-{model.iteration}" if model.iteration else ""
    name = options.name or options.folder_name + iteration
    known = {"config_hash": model.config_hash, "iteration": model.iteration}
    known["method"] = f"the attention of training, {method}"
    conditions = _conditions(name, known, options, ("torch", "megatron-core"))
    return Opened(name, index, chosen, conditions, own=model)


def _open_data(options: MeasureOptions) -> SampleFolder:
    """Open a folder of shards, or a file of records."""
    if is_role_file(options.data_path):
        if options.load is not None:
            raise ValueError(f"--data-path {options.data_path} holds ids; --load reads samples")
        return RoleFile(options.data_path, options.image_token_ids)
    if options.data_path.is_file():
        return RecordSamples(options.data_path, options.image_root or Path())
    if options.image_root is not None:
        raise ValueError(
            f"--image-root has no effect with --data-path {options.data_path}, a folder of shards; "
            "leave it out"
        )
    return open_index(options.data_path)


def _open_hf(options: MeasureOptions, index: SampleFolder, asked: Sequence[Task]) -> Opened:
    import_optional("transformers", "hf")
    from megatron_aia.measurement.hf_open import open_hf_model

    hf = open_hf_model(options, index)
    chosen = choose_samples(index, options.samples, asked, hf.reader.tasks)
    method = "exact, through Transformers' attention interface (sdpa)"
    known = {"config_hash": hf.config_hash, "method": method, "prompts": hf.reader.prompts}
    name = options.name or options.folder_name
    conditions = _conditions(name, known, options, ("torch", "transformers"))
    return Opened(name, index, chosen, conditions, hf=hf)


def _conditions(
    name: str, known: Mapping[str, Any], options: MeasureOptions, packages: tuple[str, ...]
) -> dict[str, Any]:
    flags = {key: value for key, value in asdict(options).items() if value is not None}
    return {
        "model": name,
        **known,
        "device": device_name(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "flags": {key: str(flags[key]) for key in flags},
    }
