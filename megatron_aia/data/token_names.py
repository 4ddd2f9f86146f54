"""What the ids of a model's sequences stand for, in words: for people who look at samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class TokenKind(Enum):
    """How to show a token."""

    TEXT = "text"
    """The text tokeniser decodes it."""
    SPECIAL = "special"
    """It has a name."""
    IMAGE = "image"
    """Part of an image: a code, the end of a row, or the place of a feature."""


@dataclass(frozen=True)
class TokenNames:
    """The ids that are no text."""

    special: Mapping[int, str]
    """Id to name."""
    codes: range
    """Ids of image codes."""
    others_in_images: Mapping[int, str] = field(default_factory=dict)
    """Further ids that stand inside an image, and what several of them are called."""

    def kind(self, token: int) -> TokenKind:
        """Return what an id is."""
        if token in self.codes or token in self.others_in_images:
            return TokenKind.IMAGE
        return TokenKind.SPECIAL if token in self.special else TokenKind.TEXT
