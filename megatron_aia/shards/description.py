"""What a data folder says of itself in ``dataset.json``."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from megatron_aia.shards.folder import DESCRIPTION_FILE

FORMAT_VERSION = 1


class CodesOrigin(Protocol):
    """What ``dataset.json`` says of the image tokeniser."""

    @property
    def name(self) -> str:
        """Kind and content hash."""

    @property
    def codebook_size(self) -> int:
        """Every code is below it."""


def write_description(
    folder: Path,
    num_samples: Mapping[str, int],
    image_tokenizer: CodesOrigin | None,
    dropped: Mapping[str, int],
) -> None:
    """Write ``dataset.json``.

    Args:
        folder: of the shards.
        num_samples: by task.
        image_tokenizer: what made the codes; None where there are none.
        dropped: records that were left out, by reason.
    """
    description = {
        "format_version": FORMAT_VERSION,
        "num_samples": dict(sorted(num_samples.items())),
        "codebook_size": image_tokenizer.codebook_size if image_tokenizer else 0,
        "image_tokenizer": image_tokenizer.name if image_tokenizer else "",
        "dropped": dict(sorted(dropped.items())),
        "shards": [
            {"name": path.name, "size": path.stat().st_size}
            for path in sorted(folder.glob("*.tar"))
        ],
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")


def read_num_samples(folder: Path) -> Counter[str]:
    """Return the samples of a folder by task, from its ``dataset.json``."""
    return Counter(json.loads((folder / DESCRIPTION_FILE).read_bytes())["num_samples"])


def read_codebook_size(folder: Path) -> int:
    """Return the codebook size of a folder's codes, 0 without codes, from ``dataset.json``."""
    return int(json.loads((folder / DESCRIPTION_FILE).read_bytes())["codebook_size"])


def check_codebook_size(image_tokenizer: CodesOrigin) -> None:
    """Check that codes can be stored.

    Raises:
        ValueError: they do not fit 16 bits.
    """
    if image_tokenizer.codebook_size > 1 << 16:
        raise ValueError(f"codes of {image_tokenizer.name} do not fit 16 bits")
