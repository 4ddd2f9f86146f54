"""Files derived from the shards of a data folder: its index, and tables beside it."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from megatron_aia.config.locations import is_url
from megatron_aia.runtime.atomic import write_file

logger = logging.getLogger(__name__)


def cache_folder(data_folder: str | Path, cache_path: str | Path | None = None) -> Path:
    """Return the folder of derived files; safe to delete at any time.

    Args:
        data_folder: path or URL of the shards.
        cache_path: has a folder for each data folder; None for ``.index`` inside the data folder.

    Raises:
        ValueError: there is no ``cache_path``, and the data folder is not here.
    """
    location = str(data_folder)
    if not is_url(location):
        location = str(Path(location).resolve())
    elif cache_path is None:
        raise ValueError(
            f"{location}: a URL cannot keep its index; name a folder for it by --data-cache-path"
        )
    if cache_path is None:
        return Path(data_folder) / ".index"
    name = location.rstrip("/").rpartition("/")[-1]
    return Path(cache_path) / f"{name}-{hashlib.sha256(location.encode()).hexdigest()[:16]}"


def keep_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a derived file, whole or not at all.

    It is a convenience: where the folder cannot be written, a warning says so and the run goes on.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, write)
    except OSError as error:
        logger.warning("%s is not kept, every run will compute it again: %s", path, error)
