"""UniFork's special tokens, which are Qwen2.5's, found by name, and its system prompt."""

from dataclasses import dataclass, fields

from megatron_aia.data.tokenizer import TextTokenizer

NAMES = {"begin": "<|im_start|>", "end": "<|im_end|>", "dropped": "<|video_pad|>"}

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)


@dataclass(frozen=True)
class UniForkSpecialTokens:
    """Ids in the tokeniser."""

    begin: int
    """Beginning of a sample."""
    end: int
    """End of an answer."""
    dropped: int
    """Takes the place of a dropped prompt."""

    @classmethod
    def find(cls, tokenizer: TextTokenizer) -> "UniForkSpecialTokens":
        """Look the ids up.

        Raises:
            ValueError: the tokeniser lacks one, so it is not UniFork's.
        """
        return cls(**{field.name: tokenizer.special_id(NAMES[field.name]) for field in fields(cls)})
