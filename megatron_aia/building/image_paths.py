"""The files that the image paths of records name: regular ones, below one folder."""

import stat
from pathlib import Path


def find_image(root: Path, name: str) -> Path:
    """Return the file of an image.

    Args:
        root: ``--image-root``.
        name: path of a record.

    Raises:
        ValueError: it leads out of ``root``, also by a link, or is no regular file: reading a pipe
            may never end.
        FileNotFoundError: nothing is there.
    """
    path = root / name
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        raise ValueError(
            f"it leads out of --image-root {root}; give a folder that holds all images, as "
            "--image-root /"
        )
    if not stat.S_ISREG(real.stat().st_mode):
        raise ValueError("it is no regular file")
    return path
