"""Janus-Pro's special tokens; 1B and 7B number them differently, so names find them."""

from dataclasses import dataclass, fields

from megatron_aia.data.tokenizer import TextTokenizer

NAMES = {
    "bos": "<｜begin▁of▁sentence｜>",  # noqa: RUF001
    "eos": "<｜end▁of▁sentence｜>",  # noqa: RUF001
    "pad": "<｜▁pad▁｜>",  # noqa: RUF001
    "boi": "<begin_of_image>",
    "eoi": "<end_of_image>",
    "user": "<|User|>",
    "assistant": "<|Assistant|>",
}


@dataclass(frozen=True)
class JanusSpecialTokens:
    """Ids in the tokeniser of one model."""

    bos: int
    """Beginning of a sample."""
    eos: int
    """End of an answer."""
    pad: int
    """Takes the place of a dropped prompt."""
    boi: int
    """Opens an image."""
    eoi: int
    """Closes an image to look at."""
    user: int
    assistant: int

    @classmethod
    def find(cls, tokenizer: TextTokenizer) -> "JanusSpecialTokens":
        """Look the ids up.

        Raises:
            ValueError: the tokeniser lacks one, so it is not Janus-Pro's.
        """
        return cls(**{field.name: tokenizer.special_id(NAMES[field.name]) for field in fields(cls)})
