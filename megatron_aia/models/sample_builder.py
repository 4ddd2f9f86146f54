"""What the sample encoders share: samples in pieces, the kinds of tokens, roles from kinds."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, TypeVar

import numpy as np

from megatron_aia.aia.roles import Task, key_code, query_code
from megatron_aia.data.sample import ImageSource, TokenizedSample
from megatron_aia.data.targets import NEXT_TOKEN, next_token_target
from megatron_aia.shards.raw_sample import IMAGE_TAG, RawSample

Sets = Literal["paper", "released_code"]
"""``--aia-query-key-sets``."""


def fingerprint_of_sets(sets: Sets) -> str:
    """Return what stands for ``sets`` in the fingerprint of a sample encoder.

    Checkpoints and tables beside the shards hold fingerprints, so a new name changes none of them.
    """
    return "intended" if sets == "paper" else sets


"""Queries and keys of the paper's text, or with the off-by-ones of the authors' released code."""

_Image = TypeVar("_Image")
_Piece = TypeVar("_Piece")


class Kind(IntEnum):
    """What a token is; its label and its roles follow from this alone."""

    PROMPT = 0
    """Text and special tokens that the model is given."""
    INPUT_IMAGE = 1
    """An image the model is given."""
    OUTPUT_IMAGE = 2
    """Codes of an image the model makes: labelled."""
    IMAGE_DELIMITER = 3
    """What follows from an image's size alone (and eos after a drawn image). Generation forces
    these, so they have no label."""
    ANSWER = 4
    """Text the model writes, and its eos: labelled."""


@dataclass
class SampleBuilder:
    """A sample while it is written."""

    tokens: list[np.ndarray] = field(default_factory=list)
    kinds: list[np.ndarray] = field(default_factory=list)
    images: list[ImageSource] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.tokens))

    def add(self, tokens: list[int] | np.ndarray, kind: Kind | np.ndarray) -> None:
        """Append tokens of one kind, or of one kind each."""
        self.tokens.append(np.asarray(tokens, np.int64))
        self.kinds.append(np.broadcast_to(np.asarray(kind, np.uint8), (len(tokens),)))

    def finish(self, sample: RawSample, sets: Sets, is_active: bool) -> TokenizedSample:
        """Return the sample; it has no roles unless it is active."""
        kinds, tokens = np.concatenate(self.kinds), np.concatenate(self.tokens)
        weights = ((kinds == Kind.OUTPUT_IMAGE) | (kinds == Kind.ANSWER)).astype(np.float32)
        return TokenizedSample(
            key=sample.key,
            task=sample.task,
            tokens=tokens,
            targets={NEXT_TOKEN: next_token_target(tokens, weights)},
            roles=_roles(kinds, sets) if is_active else np.zeros(len(kinds), np.uint8),
            images=tuple(self.images),
        )


def _roles(kinds: np.ndarray, sets: Sets) -> np.ndarray:
    """Return the role codes, uint8 ``[n]``.

    In a mixed sample, keys of generation are all text and special tokens before the last drawn
    image, answers included, and queries of understanding are the answers after the first image that
    the model was given. A drawn image is never a key.
    """
    position = np.arange(len(kinds))
    drawn, seen = kinds == Kind.OUTPUT_IMAGE, kinds == Kind.INPUT_IMAGE
    generation_queries, understanding_keys = drawn, seen
    last_drawn = position[drawn].max(initial=-1)
    is_text = (kinds == Kind.PROMPT) | (kinds == Kind.ANSWER)
    generation_keys = is_text & (position < last_drawn)
    first_seen = position[seen].min(initial=len(kinds))
    understanding_queries = (kinds == Kind.ANSWER) & (position > first_seen)
    if sets == "released_code":
        generation_queries = drawn & ~_ends_of_images(kinds)
        generation_keys = _one_to_the_left(generation_keys)
        understanding_keys = _one_to_the_left(seen)
    roles = np.zeros(len(kinds), np.uint8)
    roles[generation_keys] = key_code(Task.GENERATION)
    # A token is a key of one task; shifted sets of a mixed sample can meet before an image.
    roles[understanding_keys] = key_code(Task.UNDERSTANDING)
    roles[generation_queries] += query_code(Task.GENERATION)
    roles[understanding_queries] += query_code(Task.UNDERSTANDING)
    return roles


def _ends_of_images(kinds: np.ndarray) -> np.ndarray:
    """Return a mask of the last code of every drawn image."""
    codes = np.flatnonzero(kinds == Kind.OUTPUT_IMAGE)
    # Nothing but codes and frame stands in an image; the number of its first token names it.
    image_of = np.cumsum(~np.isin(kinds, (Kind.OUTPUT_IMAGE, Kind.IMAGE_DELIMITER)))[codes]
    ends = np.zeros(len(kinds), bool)
    ends[codes[np.append(np.diff(image_of) > 0, True)[: len(codes)]]] = True
    return ends


def _one_to_the_left(mask: np.ndarray) -> np.ndarray:
    shifted = np.zeros_like(mask)
    shifted[:-1] = mask[1:]
    return shifted


def check_turns(sample: RawSample) -> None:
    """Check that the turns alternate and the tags have their images.

    Raises:
        ValueError: they do not, or a generation sample is more than a prompt and an image.
    """
    roles = [turn.role for turn in sample.turns]
    if not roles or roles != ["human", "gpt"] * (len(roles) // 2):
        raise ValueError(f"sample {sample.key}: turns must be human, gpt, ...; found {roles}")
    tags = sum(turn.text.count(IMAGE_TAG) for turn in sample.turns)
    if tags != len(sample.images):
        raise ValueError(f"sample {sample.key}: {tags} image tags, {len(sample.images)} images")
    is_one_image = len(roles) == 2 and sample.turns[1].text == IMAGE_TAG and tags == 1
    if sample.task == Task.GENERATION and not is_one_image:
        raise ValueError(
            f"sample {sample.key}: a generation sample is one prompt and one image; "
            "everything else that draws is a mixed sample"
        )


def check_codes(sample: RawSample, codes: np.ndarray, codebook_size: int) -> None:
    """Check the codes of one image.

    Raises:
        ValueError: they are no grid, or one is outside the codebook.
    """
    if codes.ndim != 2 or codes.size == 0:
        raise ValueError(f"sample {sample.key}: image codes have shape {codes.shape}")
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise ValueError(
            f"sample {sample.key}: image codes {codes.min()} to {codes.max()}, but the "
            f"model's codebook_size is {codebook_size}"
        )


def split_at_tags(text: str, images: Iterator[_Image]) -> list[str | _Image]:
    """Cut a turn at its image tags and put the next images in their places."""
    pieces: list[str | _Image] = []
    for number, part in enumerate(text.split(IMAGE_TAG)):
        if number:
            pieces.append(next(images))
        if part:
            pieces.append(part)
    return pieces


def images_first(pieces: list[_Piece]) -> list[_Piece]:
    """Put images before the text, as the templates say, unless text stands between images."""
    if sum(isinstance(piece, str) for piece in pieces) > 1:
        return pieces
    return sorted(pieces, key=lambda piece: isinstance(piece, str))


def join_texts(pieces: list[_Piece]) -> list[_Piece]:
    """Join neighbouring texts: a text between two special tokens is encoded in one go."""
    joined: list[Any] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
