"""One numbering for everything that stands at a position of a Janus sequence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class JanusVocabulary:
    """Ids of this project's sequences; the model has an embedding and a head for each of two
    ranges.

    =============================  ==================================================
    ``[0, text_size)``             text and special tokens, the tokeniser's own ids
    ``[first_code, image_slot)``   image codes 0 .. codebook_size - 1, to be drawn
    ``image_slot``                 one feature of an image to look at; never a label
    =============================  ==================================================

    The tokeniser's ``<image_placeholder>`` stays text: a user who types it places no image.
    """

    text_size: int
    codebook_size: int

    def __post_init__(self) -> None:
        if self.text_size < 1 or self.codebook_size < 1:
            raise ValueError(
                f"text_vocab_size {self.text_size} and codebook_size {self.codebook_size} "
                "must both be at least 1"
            )

    @property
    def first_code(self) -> int:
        """Id of image code 0; code c is ``first_code + c``."""
        return self.text_size

    @property
    def image_slot(self) -> int:
        """Id of every position that takes a feature of an image to look at."""
        return self.text_size + self.codebook_size
