"""Images to look at, against the formulas of the authors' preprocessing."""

import numpy as np
import pytest

from megatron_aia.models.janus_pro.images import fit_square, load_square

image_module = pytest.importorskip("PIL.Image")

SIZES = [(101, 61), (61, 101), (384, 384), (700, 333), (33, 500), (13, 400), (386, 385), (7, 7)]


def noise(width, height):
    return np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("side", [384, 96])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_long_side_fits_and_the_rest_is_gray(width, height, side):
    pixels = noise(width, height)
    square = fit_square(pixels, side)
    assert square.shape == (3, side, side) and square.dtype == np.uint8
    assert square.flags.writeable
    # Whole-number division is what the authors' truncated product is for every real size.
    longest = max(width, height)
    fitted = tuple(max(length * side // longest, 14) for length in (width, height))
    resized = image_module.fromarray(pixels).resize(fitted, image_module.Resampling.BICUBIC)
    left, top = ((side - length) // 2 for length in fitted)
    inside = np.zeros((side, side), bool)
    inside[top : top + fitted[1], left : left + fitted[0]] = True
    np.testing.assert_array_equal(
        square[:, inside], np.asarray(resized).reshape(-1, 3).transpose(1, 0)
    )
    assert (square[:, ~inside] == 127).all()
    assert inside.any(0).all() or inside.any(1).all()


def test_a_length_is_cut_off_not_rounded():
    """61 / 101 * 384 is 231.9: transformers makes 232 rows of it."""
    square = fit_square(np.zeros((61, 101, 3), np.uint8), 384)
    assert (square[0, :, 0] == 0).sum() == 231


def test_a_picture_is_read_then_fitted():
    class Stored:
        def decode(self):
            return noise(9, 5)

    np.testing.assert_array_equal(load_square(Stored(), 24), fit_square(noise(9, 5), 24))
