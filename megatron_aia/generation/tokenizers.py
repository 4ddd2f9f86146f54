"""The tokenisers of a checkpoint: named by the user, of its run, or kept by a conversion."""

from pathlib import Path

from megatron_aia.checkpoint.conversion import HF_ASSETS
from megatron_aia.config import Config
from megatron_aia.config.data_sources import named_folders
from megatron_aia.data.open import image_tokenizer_path
from megatron_aia.models.image_tokenizers import load_image_tokenizer
from megatron_aia.runtime.device import device
from megatron_aia.shards.folder import TOKENIZER_FILE
from megatron_aia.shards.image_tokenizer import ImageTokenizer


def find_text_tokenizer(named: Path | None, config: Config, checkpoint: Path) -> Path:
    """Return the tokeniser that is named, of the run, beside its data, or of a conversion.

    Args:
        named: by ``--tokenizer``.
        config: of the run.
        checkpoint: one, not a folder of them.

    Raises:
        ValueError: there is none.
    """
    if named is not None:
        return named
    found = [Path(config.data.tokenizer_model)] if config.data.tokenizer_model else []
    found += [Path(folder) / TOKENIZER_FILE for folder in named_folders(config.data)[:1]]
    for path in (*found, *tokenizer_files(checkpoint / HF_ASSETS)):
        if path.exists():
            return path
    raise ValueError(f"{checkpoint} names no text tokeniser that is there; pass --tokenizer")


def tokenizer_files(folder: Path) -> list[Path]:
    """Return where a Hugging Face folder may have its text tokeniser, the best first."""
    tiktoken = sorted(folder.glob("*.tiktoken"))
    return [*tiktoken, folder / TOKENIZER_FILE, folder / "tokenizer.json"]


def open_image_tokenizer(
    named: Path | None, config: Config, image_area: int | None
) -> ImageTokenizer | None:
    """Load the image tokeniser that is named, of the run, or beside its data; None without one.

    Args:
        named: by ``--image-tokenizer``.
        config: of the run.
        image_area: pixels of a picture before its codes are made; None: the tokeniser's own.

    Raises:
        ValueError: it cannot be loaded, or is of another model.
    """
    path = named or image_tokenizer_path(config.data)
    name = "--image-tokenizer" if named else "the run's --image-tokenizer"
    if path is None:
        return None
    try:
        tokenizer = load_image_tokenizer(path, image_area, str(device()))
    except ValueError as error:
        raise ValueError(f"{name} {path} cannot be used: {error}") from None
    if tokenizer.codebook_size != config.model.codebook_size:
        raise ValueError(
            f"{name} {path} has a codebook of {tokenizer.codebook_size}, and the model one of "
            f"{config.model.codebook_size}; pass the model's own --image-tokenizer"
        )
    return tokenizer
