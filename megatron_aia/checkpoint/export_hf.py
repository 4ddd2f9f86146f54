"""From a checkpoint of this project to a Hugging Face folder, without holding it twice."""

from pathlib import Path
from typing import Any

import torch

from megatron_aia.checkpoint.conversion import (
    ASIDE,
    CARRIED,
    HF_CONFIG,
    ExportOptions,
    Progress,
    copy_files,
    summary,
    write_json,
)
from megatron_aia.checkpoint.folder import CONFIG_FILE, find_checkpoint
from megatron_aia.checkpoint.staging import check_target, staged
from megatron_aia.checkpoint.tensor_files import (
    INDEX_FILE,
    WRITTEN_BY,
    TensorFolder,
    TensorWriter,
    read_json,
)
from megatron_aia.checkpoint.unsplit import UnsplitWeights
from megatron_aia.config import Config
from megatron_aia.config.files import read_yaml, with_values
from megatron_aia.models import load_hf_format
from megatron_aia.models.hugging_face import HFFormat, HFLayout
from megatron_aia.models.param_map import ParamMap, check_targets


def export_checkpoint(options: ExportOptions) -> str:
    """Convert a checkpoint of this project and return a summary.

    Raises:
        ValueError: the checkpoint is damaged, the layout cannot hold it, or the target exists.
            Nothing is left behind.
    """
    check_target(options.save, options.overwrite, _is_conversion)
    path = find_checkpoint(options.load)
    model = with_values(Config(), read_yaml(str(path / CONFIG_FILE))).model
    hf_format = load_hf_format(model.model)
    aside = _find_aside(options, path)
    base = _base_config(hf_format, aside, options.hf_layout)
    carried = TensorFolder(aside / CARRIED) if base and (aside / CARRIED).is_dir() else None
    names = hf_format.export_names(options.hf_layout, carried is not None)
    table = hf_format.weight_map(model, names)
    with (
        UnsplitWeights(model, hf_format.vocab_size(model)) as weights,
        staged(options.save) as folder,
    ):
        check_targets(table, weights.shapes)
        dtype = str(weights.stored_dtype(path)).removeprefix("torch.")
        config = hf_format.document(model, options.hf_layout, base, carried is not None, dtype)
        write_json(folder / HF_CONFIG, config)
        writer = _write_weights(folder, table, weights.read(path), carried)
        copied = copy_files(aside, folder, hf_format.files) if base else []
    rows = [
        ("converted", f"{writer.num_tensors} tensors, {writer.num_bytes / 1e9:.3f} GB, {dtype}"),
        ("image tokeniser", f"{len(carried.shapes)} tensors" if carried else "not included"),
        ("files copied", ", ".join(copied) or "none"),
        ("written to", str(options.save)),
    ]
    return summary(rows)


def _write_weights(
    folder: Path,
    table: dict[str, ParamMap],
    parameters: dict[str, torch.Tensor],
    carried: TensorFolder | None,
) -> TensorWriter:
    """Write all tensors, and empty ``parameters`` on the way."""
    with TensorWriter(folder) as writer, Progress("convert", None) as progress:
        for name, entry in table.items():
            parts = entry.split(parameters.pop(name))
            for source, tensor in zip(entry.sources, parts, strict=True):
                writer.add(source, tensor)
                progress.add(tensor.nbytes)
        if carried:
            for source in carried.shapes:
                tensor = carried.read(source)
                writer.add(source, tensor)
                progress.add(tensor.nbytes)
    return writer


def _is_conversion(folder: Path) -> bool:
    """Return whether ``TensorWriter`` wrote the folder; a download stays."""
    index = folder / INDEX_FILE
    return index.is_file() and WRITTEN_BY.items() <= read_json(index).get("metadata", {}).items()


def _find_aside(options: ExportOptions, path: Path) -> Path:
    """Return where a conversion kept things aside; it need not exist unless asked for."""
    if options.assets is None:
        return path / ASIDE
    aside = find_checkpoint(options.assets) / ASIDE
    if not aside.is_dir():
        raise ValueError(f"--assets {options.assets} was not converted from Hugging Face")
    return aside


def _base_config(hf_format: HFFormat, aside: Path, layout: HFLayout) -> dict[str, Any] | None:
    """Return the source's config.json if it is of this layout; its files then fit, too."""
    if not (aside / HF_CONFIG).is_file():
        return None
    config = read_json(aside / HF_CONFIG)
    # Imported by --model-type, it may have a type that nobody knows.
    guess: HFLayout = "transformers" if (aside / CARRIED).is_dir() else "original"
    found = hf_format.model_types.get(config.get("model_type", ""), guess)
    return config if found == layout else None
