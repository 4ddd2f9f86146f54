"""Emu3's vocabulary: text ids, special tokens, image codes, in this order."""

from dataclasses import dataclass

_NUM_EXTRAS = 205


@dataclass(frozen=True)
class Emu3Vocabulary:
    """Ids for any text tokeniser and codebook, in the published layout.

    ======================================  ==========================================
    ``[0, text_size)``                      text
    3 ids                                   endoftext, im_start, im_end
    205 ids                                 extra_0 .. extra_204, four of them in use
    3 ids                                   image token, image start, image end
    ``[first_visual, size)``                image codes 0 .. codebook_size - 1
    ======================================  ==========================================

    The published model has ``Emu3Vocabulary(151_643, 32_768)``, which is 184,622 ids.
    """

    text_size: int
    codebook_size: int

    def __post_init__(self) -> None:
        if self.text_size < 1 or self.codebook_size < 1:
            raise ValueError(
                f"text_vocab_size {self.text_size} and codebook_size {self.codebook_size} "
                "must both be at least 1"
            )

    def _extra(self, number: int) -> int:
        return self.text_size + 3 + number

    @property
    def pad(self) -> int:
        """Padding, ``<|endoftext|>``."""
        return self.text_size

    @property
    def eol(self) -> int:
        """End of an image row, the last one included, ``<|extra_200|>``."""
        return self._extra(200)

    @property
    def eof(self) -> int:
        """End of the image's codes, ``<|extra_201|>``."""
        return self._extra(201)

    @property
    def bos(self) -> int:
        """Beginning of a sample, ``<|extra_203|>``."""
        return self._extra(203)

    @property
    def eos(self) -> int:
        """End of an answer, ``<|extra_204|>``."""
        return self._extra(204)

    @property
    def img(self) -> int:
        """Stands between an image's size and its first code, ``<|image token|>``."""
        return self._extra(_NUM_EXTRAS)

    @property
    def boi(self) -> int:
        """Opens an image, ``<|image start|>``."""
        return self.img + 1

    @property
    def eoi(self) -> int:
        """Closes an image, ``<|image end|>``."""
        return self.img + 2

    @property
    def first_visual(self) -> int:
        """Id of image code 0; code c is ``first_visual + c``."""
        return self.img + 3

    @property
    def size(self) -> int:
        """All ids, before any padding for tensor parallelism."""
        return self.first_visual + self.codebook_size
