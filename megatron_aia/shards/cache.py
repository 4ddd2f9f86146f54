"""Files derived from the shards of a data folder: its index, and tables beside it."""

import hashlib
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from megatron_aia.config.locations import is_url

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


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name, then rename it, so no reader ever sees a part of it.

    Many processes may write the same file at once; the last one wins. A derived file is a
    convenience: where the folder cannot be written, a warning says so and the run goes on.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                write(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s is not kept, every run will compute it again: %s", path, error)
