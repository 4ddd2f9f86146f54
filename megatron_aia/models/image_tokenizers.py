"""Which image tokeniser a file or folder holds: the families say by the ``model_type`` they read.

Imports no torch.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Optional

from megatron_aia.models import families
from megatron_aia.models.family import ModelFamily
from megatron_aia.shards.image_tokenizer import ImageTokenizer
from megatron_aia.shards.residual_quantizer import load_quantizer


def load_image_tokenizer(
    path: str | Path, image_area: Optional[int] = None, device: str = "cpu"
) -> ImageTokenizer:
    """Load a codebook (``*.npz``), or the image tokeniser in a local folder of a model family.

    Args:
        path: file or folder.
        image_area: pixels of a picture before it is encoded; the tokeniser's own when unset.
        device: torch device of a network; a codebook does not use it.

    Raises:
        ValueError: nothing is there, or it cannot be read.
    """
    path = Path(path)
    if path.is_file():
        return load_quantizer(path, image_area)
    family = owner_of_image_tokenizer(path)
    module, _, function = family.image_tokenizers[_model_type(path)].partition(":")
    tokenizer: ImageTokenizer = getattr(import_module(module), function)(path, image_area, device)
    return tokenizer


def owner_of_image_tokenizer(folder: Path) -> ModelFamily:
    """Return the family that reads the image tokeniser in a folder.

    Raises:
        ValueError: there is no folder, or no family reads what is in it.
    """
    if not folder.is_dir():
        raise ValueError(
            f"no image tokeniser at {folder}: expected an *.npz file or a model folder"
        )
    found = _model_type(folder)
    for family in families():
        if found in family.image_tokenizers:
            return family
    known = sorted(name for family in families() for name in family.image_tokenizers)
    raise ValueError(
        f"{folder / 'config.json'} has the model_type {found!r}, whose image tokeniser cannot be "
        f"read; expected one of {', '.join(known)}"
    )


def _model_type(folder: Path) -> str:
    """Return the ``model_type`` of a folder's config.json.

    Raises:
        ValueError: it cannot be read, or has none.
    """
    try:
        document = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no image tokeniser in {folder}: cannot read its config.json: {error}"
        ) from None
    found = document.get("model_type") if isinstance(document, dict) else None
    if not isinstance(found, str):
        raise ValueError(f"no image tokeniser in {folder}: its config.json has no model_type")
    return found
