"""From a checkpoint of this project to a Hugging Face folder, without holding it twice."""

from pathlib import Path
from typing import Any

import torch

from megatron_aia.checkpoint.choose import choose_checkpoint
from megatron_aia.checkpoint.conversion import (
    HF_ASSETS,
    HF_CONFIG,
    NO_CONVERSION,
    PASSTHROUGH,
    ExportOptions,
    Progress,
    copy_files,
    summary,
    write_json,
)
from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.checkpoint.run_state import CONFIG_FILE
from megatron_aia.checkpoint.single_process_model import SingleProcessModel
from megatron_aia.checkpoint.tensor_files import (
    INDEX_FILE,
    WRITTEN_BY,
    TensorFolder,
    TensorWriter,
    read_json,
)
from megatron_aia.models import load_hf_format, read_run_config
from megatron_aia.models.hugging_face import HFFormat, HFLayout, HFNames, HFTarget
from megatron_aia.models.map_checks import check_targets
from megatron_aia.models.param_map import ParamMap
from megatron_aia.runtime.atomic import check_target, staged


def export_checkpoint(options: ExportOptions) -> str:
    """Convert a checkpoint of this project and return a summary.

    Raises:
        ValueError: the checkpoint is damaged, the layout cannot hold it, or the target exists.
            Nothing is left behind.
    """
    check_target(options.save, options.overwrite, _is_conversion, NO_CONVERSION)
    path = choose_checkpoint(options.load)
    model = read_run_config(str(path / CONFIG_FILE)).model
    hf_format = load_hf_format(model.model)
    hf_assets = _find_hf_assets(options, path)
    base = _base_config(hf_format, hf_assets, options.hf_layout)
    kept = TensorFolder(hf_assets / PASSTHROUGH) if (hf_assets / PASSTHROUGH).is_dir() else None
    names = hf_format.export_names(options.hf_layout, kept is not None)
    passthrough = _written_names(names, kept)
    table = hf_format.weight_map(model, names)
    with SingleProcessModel(model) as weights, staged(options.save) as folder:
        check_targets(table, weights.shapes)
        dtype = str(weights.stored_dtype(path)).removeprefix("torch.")
        shapes = {name: kept.shapes[name] for name in passthrough} if kept else {}
        target = HFTarget(model, options.hf_layout, dtype, base, shapes, hf_assets)
        write_json(folder / HF_CONFIG, hf_format.document(target))
        writer = _write_weights(folder, table, weights.read(path), kept, passthrough)
        written = _write_files(folder, hf_format, target)
    rows = [
        ("converted", f"{writer.num_tensors} tensors, {writer.num_bytes / 1e9:.3f} GB, {dtype}"),
        ("image tokeniser", _count(len(passthrough)) if passthrough else "not included"),
        ("files", ", ".join(written) or "none"),
        ("written to", str(options.save)),
    ]
    dropped = len(kept.shapes) - len(passthrough) if kept else 0
    if dropped:
        rows.insert(2, ("left out", f"{_count(dropped)} that this layout has no place for"))
    return summary(rows)


def _count(number: int) -> str:
    return f"{number} tensors"


def _written_names(names: HFNames, kept: TensorFolder | None) -> dict[str, str]:
    """Return the kept tensors that the layout has a place for: name there by name kept."""
    found = {name: names.export_name(name) for name in kept.shapes} if kept else {}
    return {name: written for name, written in found.items() if written is not None}


def _write_weights(
    folder: Path,
    table: dict[str, ParamMap],
    parameters: dict[str, torch.Tensor],
    kept: TensorFolder | None,
    passthrough: dict[str, str],
) -> TensorWriter:
    """Write all tensors, and empty ``parameters`` on the way."""
    num_bytes = sum(parameter.nbytes for parameter in parameters.values())
    if kept and passthrough:
        num_bytes += kept.num_bytes
    with TensorWriter(folder) as writer, Progress("convert", num_bytes) as progress:

        def write(name: str, tensor: torch.Tensor) -> None:
            writer.add(name, tensor)
            progress.add(tensor.nbytes)

        for name, entry in table.items():
            parts = entry.split(parameters.pop(name))
            for source, tensor in zip(entry.sources, parts, strict=True):
                write(source, tensor)
        for name, written in passthrough.items():
            assert kept is not None
            write(written, kept.read(name))
    return writer


def _write_files(folder: Path, hf_format: HFFormat, target: HFTarget) -> list[str]:
    """Copy the source's tokeniser and processor files, or what another layout shares of them."""
    patterns = hf_format.files if target.base else hf_format.shared_files
    written = copy_files(target.hf_assets, folder, patterns)
    if not target.base:
        for name, content in hf_format.processor_files(target).items():
            write_json(folder / name, content)
            written.append(name)
    return sorted(written)


def _is_conversion(folder: Path) -> bool:
    """Return whether ``TensorWriter`` wrote the folder; a download stays."""
    index = folder / INDEX_FILE
    return index.is_file() and WRITTEN_BY.items() <= read_json(index).get("metadata", {}).items()


def _find_hf_assets(options: ExportOptions, path: Path) -> Path:
    """Return where a conversion kept files aside; it need not exist unless asked for."""
    if options.assets is None:
        return path / HF_ASSETS
    hf_assets = find_checkpoint(options.assets) / HF_ASSETS
    if not hf_assets.is_dir():
        raise ValueError(f"--assets {options.assets} was not converted from Hugging Face")
    return hf_assets


def _base_config(hf_format: HFFormat, hf_assets: Path, layout: HFLayout) -> dict[str, Any] | None:
    """Return the source's config.json if it is of this layout; its other files then fit, too."""
    if not (hf_assets / HF_CONFIG).is_file():
        return None
    config = read_json(hf_assets / HF_CONFIG)
    # Imported by --model-type, it may have a type that nobody knows.
    guess: HFLayout = "transformers" if (hf_assets / PASSTHROUGH).is_dir() else "original"
    found = hf_format.model_types.get(config.get("model_type", ""), guess)
    return config if found == layout else None
