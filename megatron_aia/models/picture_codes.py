"""Codes of images that are stored as pictures: made when a sample is written."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from megatron_aia.shards.image_tokenizer import ImageTokenizer, encode_picture
from megatron_aia.shards.raw_sample import IMAGE_TAG, Picture, RawSample


class PictureCodes:
    """Puts codes in the place of the pictures that a model knows by their codes.

    Codes that are stored stay. Without a tokeniser every picture stays too, and the sample encoder
    says what it lacks.

    Args:
        tokenizer: makes the codes, the same on every rank that reads a sample; None where all codes
            are stored.
        drawn_only: pictures that the model looks at stay pictures.
        side: codes along a side of every image; 0 for a model of any size.
        depth: residual codes of a token; 0 where a token is one code.

    Raises:
        ValueError: the tokeniser makes images of other sizes.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer | None,
        drawn_only: bool = False,
        side: int = 0,
        depth: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._drawn_only = drawn_only
        self._side = side
        self._residual = (depth,) if depth else ()
        self.fingerprint = "" if tokenizer is None else f"|{tokenizer.fingerprint}"
        """Text that ends the description of a sample encoder; empty without a tokeniser."""
        if tokenizer is None or not side:
            return
        for width in (640, 1920):
            height, codes_wide = tokenizer.grid(width, 640)
            if (height, codes_wide) != (side, side):
                raise ValueError(
                    f"--image-tokenizer {tokenizer.name} makes {height} x {codes_wide} codes of a "
                    f"picture of {width} x 640 pixels, and the model draws {side} x {side}; name "
                    "the model's own image tokeniser"
                )

    def encode(self, sample: RawSample) -> RawSample:
        """Return ``sample`` with the codes of its pictures.

        Args:
            sample: with as many image tags as images.

        Raises:
            ValueError: a picture is damaged, or too narrow for the tokeniser.
        """
        tokenizer = self._tokenizer
        if tokenizer is None:
            return sample

        def codes(picture: Picture) -> np.ndarray:
            pixels = picture.decode()
            with _errors_name(sample):
                return encode_picture(tokenizer, pixels)

        return self._replace(sample, codes)

    def stand_in(self, sample: RawSample) -> RawSample:
        """Return ``sample`` with zeros in the place of the codes that ``encode`` would make.

        No picture is decoded; where the size of an image follows from its picture, the header is
        read.

        Raises:
            ValueError: a header is damaged, or a picture too narrow for the tokeniser.
        """
        tokenizer = self._tokenizer
        if tokenizer is None:
            return sample

        def zeros(picture: Picture) -> np.ndarray:
            if self._side:
                return np.zeros((self._side, self._side, *self._residual), np.int64)
            size = picture.pixel_size()
            with _errors_name(sample):
                return np.zeros((*tokenizer.grid(*size), *self._residual), np.int64)

        return self._replace(sample, zeros)

    def _replace(self, sample: RawSample, make: Callable[[Picture], np.ndarray]) -> RawSample:
        roles = [turn.role for turn in sample.turns for _ in range(turn.text.count(IMAGE_TAG))]
        images: list[np.ndarray | Picture] = []
        for role, image in zip(roles, sample.images, strict=True):
            if isinstance(image, np.ndarray) or (self._drawn_only and role == "human"):
                images.append(image)
            else:
                images.append(make(image))
        return replace(sample, images=tuple(images))


@contextmanager
def _errors_name(sample: RawSample) -> Iterator[None]:
    """Put the sample into an error of a tokeniser, which sees only pixels."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"sample {sample.key}: {error}; build the shards without it") from None
