"""Images to look at, from picture to square: what the authors' preprocessing does on the host.

Values stay bytes, a quarter of what floats would take on their way to the device; the model turns
0 .. 255 into -1 .. 1 there.
"""

import numpy as np

from megatron_aia.runtime.optional import import_optional
from megatron_aia.shards.raw_sample import Picture

_SHORTEST_SIDE = 14
_BACKGROUND = 127


def load_square(picture: Picture, size: int) -> np.ndarray:
    """Read a picture and fit it, see ``fit_square``.

    Raises:
        CorruptSampleError: the picture is damaged.
    """
    return fit_square(picture.decode(), size)


def fit_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scale a picture until its long side fits, and lay it on the middle of a gray square.

    Args:
        pixels: uint8 ``[height, width, 3]``.
        size: side of the square.

    Returns:
        uint8 ``[3, size, size]``.
    """
    image_module = import_optional("PIL.Image", "hf")
    longest = max(pixels.shape[:2])
    # Cut off, not rounded: transformers rounds, and gets another row or column now and then.
    height, width = (
        max(int(side / longest * size), min(_SHORTEST_SIDE, size)) for side in pixels.shape[:2]
    )
    image = image_module.fromarray(pixels)
    resized = np.asarray(image.resize((width, height), image_module.Resampling.BICUBIC))
    square = np.full((3, size, size), _BACKGROUND, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[:, top : top + height, left : left + width] = resized.transpose(2, 0, 1)
    return square
