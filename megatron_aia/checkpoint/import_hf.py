"""From a Hugging Face checkpoint to one that any layout loads, one tensor at a time."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from megatron_aia.checkpoint.conversion import (
    HF_ASSETS,
    HF_CONFIG,
    NO_CONVERSION,
    PASSTHROUGH,
    ImportOptions,
    Progress,
    copy_files,
    summary,
)
from megatron_aia.checkpoint.folder import RELEASE
from megatron_aia.checkpoint.release import complete_release, is_release
from megatron_aia.checkpoint.single_process_model import SingleProcessModel
from megatron_aia.checkpoint.tensor_files import TensorFolder, TensorWriter, read_json
from megatron_aia.checkpoint.verify import verify
from megatron_aia.models import family_names, family_of_model_type, load_hf_format
from megatron_aia.models.hugging_face import HFFormat, HFNames, HFSource
from megatron_aia.models.map_checks import check_sources, check_targets
from megatron_aia.models.param_map import ParamMap
from megatron_aia.runtime.atomic import check_target, staged


def import_checkpoint(options: ImportOptions) -> str:
    """Convert a Hugging Face checkpoint and return a summary.

    Raises:
        ValueError: the checkpoint is damaged or of another model, the target exists, or the two
            models disagree. Nothing is left behind.
    """
    check_target(options.save, options.overwrite, is_release, NO_CONVERSION)
    config = read_json(options.hf_path / HF_CONFIG)
    hf_format = _find_format(options, config)
    source = TensorFolder(options.hf_path)
    names = hf_format.find_names(source.shapes.keys())
    for name in hf_format.documents:
        if (options.hf_path / f"{name}.json").is_file():
            config[name] = read_json(options.hf_path / f"{name}.json")
    model = hf_format.model_config(config)
    table = hf_format.weight_map(model, names)
    check_sources(table, source.shapes, lambda name: names.passthrough_name(name) is not None)
    with (
        SingleProcessModel(model) as weights,
        staged(options.save) as folder,
    ):
        check_targets(table, weights.shapes)
        release = folder / RELEASE
        release.mkdir()
        with Progress("convert", source.num_bytes) as progress:
            rows = _fill(weights, table, source, progress)
            weights.save(release)
            (release / HF_ASSETS).mkdir()
            rows += _copy_passthrough(source, names, release / HF_ASSETS / PASSTHROUGH, progress)
        complete_release(folder, model)
        copied = copy_files(options.hf_path, release / HF_ASSETS, [HF_CONFIG, *hf_format.files])
        rows.append(("files kept", ", ".join(copied)))
        if options.verify:
            origin = HFSource(options.hf_path, config, list(source.shapes), source.read)
            rows += verify(hf_format, origin, model, weights, release)
    return summary([*rows, ("written to", str(options.save))])


def _find_format(options: ImportOptions, config: dict[str, Any]) -> HFFormat:
    if options.model_type:
        return load_hf_format(options.model_type)
    found = config.get("model_type")
    family = family_of_model_type(found)
    if family is not None:
        return load_hf_format(family)
    raise ValueError(
        f"{options.hf_path / HF_CONFIG}: model_type {found!r} is not known; if it is one of "
        f"{', '.join(family_names())}, name it by --model-type"
    )


def _fill(
    weights: SingleProcessModel,
    table: dict[str, ParamMap],
    source: TensorFolder,
    progress: Progress,
) -> list[tuple[str, str]]:
    dtypes = set()
    for name, entry in table.items():
        tensors = []
        for part in entry.sources:
            tensors.append(source.read(part))
            progress.add(tensors[-1].nbytes)
        if len({tensor.dtype for tensor in tensors}) > 1:
            raise ValueError(f"{', '.join(entry.sources)} must have one type, they are fused")
        dtypes.add(tensors[0].dtype)
        weights.set(name, entry.join(tensors))
    size = f"{progress.num_tensors} tensors, {progress.num_bytes / 1e9:.3f} GB"
    return [("converted", f"{size}, {', '.join(_short(dtypes))}")]


def _short(dtypes: Iterable[torch.dtype]) -> list[str]:
    return sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _copy_passthrough(
    source: TensorFolder, names: HFNames, folder: Path, progress: Progress
) -> list[tuple[str, str]]:
    """Keep the tensors that only travel."""
    passthrough = {
        name: kept for name in source.shapes if (kept := names.passthrough_name(name)) is not None
    }
    if not passthrough:
        return []
    folder.mkdir()
    with TensorWriter(folder) as writer:
        for name, kept in passthrough.items():
            tensor = source.read(name)
            writer.add(kept, tensor)
            progress.add(tensor.nbytes)
    return [("passthrough", f"{writer.num_tensors} tensors, {writer.num_bytes / 1e9:.3f} GB")]
