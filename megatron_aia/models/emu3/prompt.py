"""How Emu3 writes a sample: tokens, next-token labels, and the rows and keys of the AIA term.

::

    image          boi "h*w" img  (w codes, eol) x h  eof eoi
    generation     bos prompt image                                          no eos, as published
    understanding  bos "You are a helpful assistant. USER: {image}{text}. ASSISTANT:" answer eos
    text           the same without an image
    later turns    " USER: {text}. ASSISTANT:" answer eos
    mixed          the turns of understanding; an answer may hold images

The template is the published one to the letter, so a question that ends in "." gets a second one.
An answer is encoded apart from "ASSISTANT:", because that is where inference starts to write.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import numpy as np

from megatron_aia.aia.roles import Task, key_code, row_code
from megatron_aia.data.sample import IMAGE_TAG, RawSample, TokenizedSample
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.emu3.vocabulary import Emu3Vocabulary

_FIRST_LEAD = "You are a helpful assistant. USER: "
_LATER_LEAD = " USER: "
_ANSWER_LEAD = ". ASSISTANT:"

Piece = str | np.ndarray
"""Text, or the int64 ``[h, w]`` codes of an image."""


class Kind(IntEnum):
    """What a token is; its label and its roles follow from this alone."""

    PROMPT = 0
    """Text and special tokens that the model is given."""
    SEEN = 1
    """Codes and row ends of an image the model is given."""
    DRAWN = 2
    """Codes of an image the model makes: labelled."""
    FRAME = 3
    """What follows from an image's size alone: row ends, eof, eoi (and eos after a drawn image).
    Generation forces these, so they have no label."""
    ANSWER = 4
    """Text the model writes, and its eos: labelled."""


@dataclass
class _Draft:
    """A sample while it is written."""

    tokens: list[np.ndarray] = field(default_factory=list)
    kinds: list[np.ndarray] = field(default_factory=list)

    def add(self, tokens: list[int] | np.ndarray, kind: Kind | np.ndarray) -> None:
        """Append tokens of one kind, or of one kind each."""
        self.tokens.append(np.asarray(tokens, np.int64))
        self.kinds.append(np.broadcast_to(np.asarray(kind, np.uint8), (len(tokens),)))


class Emu3Prompt:
    """The ``PromptBuilder`` of Emu3.

    Args:
        vocabulary: ids of the model.
        tokenizer: text tokeniser; all of its ids must be text ids of ``vocabulary``.
        sets: rows and keys of the intensity. ``intended`` are those of the paper's text:

            - generation: rows are the drawn codes; keys are all tokens before the first of them,
              bos and the image's head (boi, size, img) included.
            - understanding: rows are the answer tokens with a label; keys are the codes and row
              ends of the image, which Hugging Face's Emu3 also counts as its image tokens.

            ``released_code`` carries over the off-by-ones of the authors' Janus-Pro code: the last
            drawn code is no row, and both sets of keys lie one token to the left. So generation
            loses img, and understanding gains img and loses the last row end.

    Raises:
        ValueError: the tokeniser has more ids than the vocabulary has text ids.
    """

    def __init__(
        self,
        vocabulary: Emu3Vocabulary,
        tokenizer: TextTokenizer,
        sets: Literal["intended", "released_code"] = "intended",
    ) -> None:
        if tokenizer.vocab_size > vocabulary.text_size:
            raise ValueError(
                f"the tokeniser has {tokenizer.vocab_size} ids and the model {vocabulary.text_size}"
                " text ids; set --text-vocab-size or choose the model's own --tokenizer-model"
            )
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.sets = sets
        described = f"emu3 prompt 1|{vocabulary}|{tokenizer.fingerprint}|{sets}"
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()
        """Equal fingerprints write every sample equally."""

    def __call__(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        """Write ``sample``.

        A dropped prompt leaves bos directly before boi, as Emu3's training code does; such a
        sample has no AIA roles. Samples of other tasks than generation ignore ``drop_prompt``.

        Raises:
            ValueError: turns or image tags do not fit the task, or a code is out of range.
        """
        self._check(sample)
        if sample.task == Task.GENERATION:
            draft = self._write_generation(sample, drop_prompt)
        else:
            draft = self._write_chat(sample)
        tokens = np.concatenate(draft.tokens)
        kinds = np.concatenate(draft.kinds)
        inactive = drop_prompt and sample.task == Task.GENERATION
        return TokenizedSample(
            key=sample.key,
            task=sample.task,
            tokens=tokens,
            label_weights=np.isin(kinds, (Kind.DRAWN, Kind.ANSWER)).astype(np.float32),
            roles=np.zeros(len(tokens), np.uint8) if inactive else self._roles(tokens, kinds),
        )

    def _check(self, sample: RawSample) -> None:
        roles = [turn.role for turn in sample.turns]
        if not roles or roles != ["human", "gpt"] * (len(roles) // 2):
            raise ValueError(f"sample {sample.key}: turns must be human, gpt, ...; found {roles}")
        tags = sum(turn.text.count(IMAGE_TAG) for turn in sample.turns)
        if tags != len(sample.codes):
            raise ValueError(f"sample {sample.key}: {tags} image tags, {len(sample.codes)} images")
        for codes in sample.codes:
            if codes.ndim != 2 or codes.size == 0:
                raise ValueError(f"sample {sample.key}: image codes have shape {codes.shape}")
            if codes.min() < 0 or codes.max() >= self.vocabulary.codebook_size:
                raise ValueError(
                    f"sample {sample.key}: image codes {codes.min()} to {codes.max()}, but the "
                    f"model's codebook_size is {self.vocabulary.codebook_size}"
                )

    def _write_generation(self, sample: RawSample, drop_prompt: bool) -> _Draft:
        if len(sample.turns) != 2 or sample.turns[1].text != IMAGE_TAG or len(sample.codes) != 1:
            raise ValueError(
                f"sample {sample.key}: a generation sample is one prompt and one image; "
                "everything else that draws is a mixed sample"
            )
        draft = _Draft()
        draft.add([self.vocabulary.bos], Kind.PROMPT)
        if not drop_prompt:
            draft.add(self.tokenizer.encode(sample.turns[0].text), Kind.PROMPT)
        self._write_image(draft, sample.codes[0], Kind.DRAWN)
        return draft

    def _write_chat(self, sample: RawSample) -> _Draft:
        draft = _Draft()
        draft.add([self.vocabulary.bos], Kind.PROMPT)
        codes = iter(sample.codes)
        lead = _FIRST_LEAD
        for human, gpt in zip(sample.turns[::2], sample.turns[1::2], strict=True):
            question = _images_first(_split(human.text, codes))
            for piece in _join_texts([lead, *question, _ANSWER_LEAD]):
                self._write_piece(draft, piece, Kind.PROMPT, Kind.SEEN)
            answer = _split(gpt.text, codes)
            for piece in answer:
                self._write_piece(draft, piece, Kind.ANSWER, Kind.DRAWN)
            ends_in_image = bool(answer) and not isinstance(answer[-1], str)
            draft.add([self.vocabulary.eos], Kind.FRAME if ends_in_image else Kind.ANSWER)
            lead = _LATER_LEAD
        return draft

    def _write_piece(self, draft: _Draft, piece: Piece, text_kind: Kind, image_kind: Kind) -> None:
        if isinstance(piece, str):
            draft.add(self.tokenizer.encode(piece), text_kind)
        else:
            self._write_image(draft, piece, image_kind)

    def _write_image(self, draft: _Draft, codes: np.ndarray, kind: Kind) -> None:
        height, width = codes.shape
        ids = self.vocabulary
        size = self.tokenizer.encode(f"{height}*{width}")
        draft.add([ids.boi, *size, ids.img], Kind.PROMPT)
        block = np.full((height, width + 1), ids.eol, np.int64)
        block[:, :width] = codes.astype(np.int64) + ids.first_visual
        kinds = np.full(block.shape, kind, np.uint8)
        if kind == Kind.DRAWN:
            kinds[:, width] = Kind.FRAME
        draft.add(block.ravel(), kinds.ravel())
        draft.add([ids.eof, ids.eoi], Kind.FRAME if kind == Kind.DRAWN else Kind.PROMPT)

    def _roles(self, tokens: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        """Return the role codes, uint8 ``[n]``.

        In a mixed sample, keys of generation are all text and special tokens before the last drawn
        image, answers included, and rows of understanding are the answers after the first image
        that the model was given. A drawn image is never a key.
        """
        position = np.arange(len(tokens))
        drawn, seen = kinds == Kind.DRAWN, kinds == Kind.SEEN
        drawing_rows, seeing_keys = drawn, seen
        last_drawn = position[drawn].max(initial=-1)
        drawing_keys = np.isin(kinds, (Kind.PROMPT, Kind.ANSWER)) & (position < last_drawn)
        first_seen = position[seen].min(initial=len(tokens))
        seeing_rows = (kinds == Kind.ANSWER) & (position > first_seen)
        if self.sets == "released_code":
            # An image ends: last code, eol, eof.
            last_codes = np.flatnonzero(tokens == self.vocabulary.eof) - 2
            drawing_rows = drawn & ~np.isin(position, last_codes)
            drawing_keys = _one_to_the_left(drawing_keys)
            seeing_keys = _one_to_the_left(seen)
        roles = np.zeros(len(tokens), np.uint8)
        roles[drawing_keys] = key_code(Task.GENERATION)
        # A token is a key of one task; shifted sets of a mixed sample can meet at img.
        roles[seeing_keys] = key_code(Task.UNDERSTANDING)
        roles[drawing_rows] += row_code(Task.GENERATION)
        roles[seeing_rows] += row_code(Task.UNDERSTANDING)
        return roles


def _split(text: str, codes: Iterator[np.ndarray]) -> list[Piece]:
    """Cut a turn at its image tags and put the next images in their places."""
    pieces: list[Piece] = []
    for number, part in enumerate(text.split(IMAGE_TAG)):
        if number:
            pieces.append(next(codes))
        if part:
            pieces.append(part)
    return pieces


def _images_first(pieces: list[Piece]) -> list[Piece]:
    """Put images before the text, as the template says, unless text stands between images."""
    texts = [piece for piece in pieces if isinstance(piece, str)]
    if len(texts) > 1:
        return pieces
    return [piece for piece in pieces if not isinstance(piece, str)] + list(texts)


def _join_texts(pieces: list[Piece]) -> list[Piece]:
    """Join neighbouring texts: a text between two special tokens is encoded in one go."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _one_to_the_left(mask: np.ndarray) -> np.ndarray:
    shifted = np.zeros_like(mask)
    shifted[:-1] = mask[1:]
    return shifted
