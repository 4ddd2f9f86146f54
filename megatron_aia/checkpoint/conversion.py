"""What both directions of the conversion share: settings, folder of things kept aside, report."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from megatron_aia.models.hugging_face import HFLayout

HF_CONFIG = "config.json"
HF_ASSETS = "hugging_face"
"""In a converted checkpoint: config.json and tokeniser files of the source."""
PASSTHROUGH = "carried"
"""In that folder: tensors that only travel."""
NO_CONVERSION = "was not made by a conversion; choose another --save"
"""Said of a folder at --save that is not replaced."""


@dataclass
class ImportOptions:
    """Settings of ``import_checkpoint``."""

    hf_path: Path
    """Folder of a Hugging Face checkpoint: config.json, and *.safetensors or *.bin."""
    save: Path
    """Folder to make, for --load of the training script."""
    model_type: Optional[str] = None
    """Model family; unset, config.json says it."""
    verify: bool = False
    """Compare the logits of both models; if they differ, nothing is made."""
    overwrite: bool = False
    """Replace an older conversion at --save."""


@dataclass
class ExportOptions:
    """Settings of ``export_checkpoint``."""

    load: Path
    """Checkpoint of this project, or a folder of them, whose newest is taken."""
    save: Path
    """Folder to make."""
    hf_layout: HFLayout
    """Names and config.json as the model's authors have them, or as Transformers has them."""
    assets: Optional[Path] = None
    """Converted checkpoint whose tokeniser files and image tokeniser to add; unset, --load's."""
    overwrite: bool = False
    """Replace an older conversion at --save."""


@dataclass
class MergeOptions:
    """Settings of ``merge_branches``."""

    understanding: Path
    """Checkpoint that trained the branch that looks, or a folder of them, whose newest is taken."""
    generation: Path
    """Checkpoint that trained the branch that draws."""
    save: Path
    """Folder to make, for --load of the training script."""
    overwrite: bool = False
    """Replace an older result at --save."""


class Progress:
    """A bar in bytes that counts tensors too. Shows nothing where there is no terminal.

    Args:
        label: what is done.
        num_bytes: all there is to do; None if that is not known.
    """

    def __init__(self, label: str, num_bytes: int | None) -> None:
        self._bar = tqdm(
            desc=label, total=num_bytes, unit="B", unit_scale=True, disable=None, mininterval=1
        )
        self.num_tensors = 0
        """Tensors done."""
        self.num_bytes = 0
        """Their size."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, num_bytes: int) -> None:
        """Count one tensor."""
        self.num_tensors += 1
        self.num_bytes += num_bytes
        self._bar.set_postfix_str(f"{self.num_tensors} tensors", refresh=False)
        self._bar.update(num_bytes)


def copy_files(source: Path, target: Path, patterns: Sequence[str]) -> list[str]:
    """Copy the files that match and return their names."""
    found = {file for pattern in patterns for file in source.glob(pattern) if file.is_file()}
    for file in found:
        shutil.copyfile(file, target / file.name)
    return sorted(file.name for file in found)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def summary(rows: Sequence[tuple[str, str]]) -> str:
    """Return a table of two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
