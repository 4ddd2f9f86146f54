r"""How Janus-Pro writes a sample: tokens, next-token labels, and the queries and keys of the AIA
term.

::

    seen image     boi  slot x grid * grid  eoi                grid = image_size / patch_size
    generation     bos <|User|> ": {prompt}\n\n" <|Assistant|> ":" boi  grid * grid codes    no eoi
    understanding  bos <|User|> ": " seen image "\n{text}\n\n" <|Assistant|> ":" " {answer}" eos
    text           the same without an image
    later turns    <|User|> ": {text}\n\n" <|Assistant|> ":" " {answer}" eos
    mixed          the turns of understanding; an answer may hold images: boi codes eoi

This is the authors' template "deepseek" with an empty system prompt, as in AIA's training; another
one stands behind bos in a conversation, with "\\n\\n" at its end. White
space at both ends of a turn is removed. The quoted texts are encoded one by one. So the answer
begins with a space of its own: inference starts to write after ":", and the completed turn of the
template has a space there.

AIA's released training code differs in three things that are not repeated here: it writes no space
before an answer, eos after the last answer only, and another bos before every later turn.

Mixed samples are not in the authors' code; their form is this project's.
"""

import hashlib
from collections.abc import Iterator
from functools import partial

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.data.sample import ImageSource, SampleEncoder, TokenizedSample
from megatron_aia.data.token_names import TokenNames
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.janus_pro.images import load_square
from megatron_aia.models.janus_pro.special_tokens import NAMES, JanusSpecialTokens
from megatron_aia.models.janus_pro.vocabulary import JanusVocabulary
from megatron_aia.models.picture_codes import PictureCodes
from megatron_aia.models.sample_builder import (
    Kind,
    SampleBuilder,
    Sets,
    check_codes,
    check_turns,
    fingerprint_of_sets,
    images_first,
    join_texts,
    split_at_tags,
)
from megatron_aia.shards.image_tokenizer import ImageTokenizer
from megatron_aia.shards.raw_sample import Picture, RawSample

Image = np.ndarray | Picture


class JanusSampleEncoder(SampleEncoder):
    """The ``SampleEncoder`` of Janus-Pro.

    Args:
        vocabulary: ids of the model.
        tokenizer: text tokeniser; all of its ids must be text ids of ``vocabulary``.
        special_tokens: of this tokeniser.
        sets: queries and keys of the intensity. ``paper`` are those of the paper's text:

            - generation: queries are the drawn codes; keys are all tokens before the first of them,
              bos, template and boi included.
            - understanding: queries are the answer tokens with a label; keys are the image's slots.

            ``released_code`` are those of the authors' code, one token off at three ends: the last
            drawn code is no query, boi is no key of generation, and the keys of understanding are
            boi and all slots but the last.
        image_size: side in pixels of an image, to look at or to draw.
        patch_size: side in pixels of what a slot or a code stands for.
        images: makes the codes of images to draw that are stored as pictures.
        system_prompt: begins a conversation; "" in training.

    Raises:
        ValueError: the tokeniser has more ids than the vocabulary has text ids, patches do not
            fill an image, or ``images`` makes others than the model draws.
    """

    pad_id = 0

    def __init__(
        self,
        vocabulary: JanusVocabulary,
        tokenizer: TextTokenizer,
        special_tokens: JanusSpecialTokens,
        sets: Sets = "paper",
        image_size: int = 384,
        patch_size: int = 16,
        images: ImageTokenizer | None = None,
        system_prompt: str = "",
    ) -> None:
        highest = max(tokenizer.vocab_size - 1, *vars(special_tokens).values())
        if highest >= vocabulary.text_size:
            raise ValueError(
                f"the tokeniser has ids up to {highest} and the model {vocabulary.text_size} "
                "text ids; set --text-vocab-size or choose the model's own --tokenizer-model"
            )
        if image_size % patch_size:
            raise ValueError(f"patches of {patch_size} pixels do not fill a side of {image_size}")
        self.vocabulary = vocabulary
        self._tokenizer = tokenizer
        self.special_tokens = special_tokens
        self.sets = sets
        self.image_size = image_size
        self.grid = image_size // patch_size
        """Slots, or codes, along a side of an image."""
        self._codes = PictureCodes(images, drawn_only=True, side=self.grid)
        described = f"janus_pro prompt 1|{vocabulary}|{tokenizer.fingerprint}|{special_tokens}"
        described += (
            f"|{fingerprint_of_sets(sets)}|{image_size}|{self.grid}{self._codes.fingerprint}"
        )
        self._system_prompt = system_prompt
        if system_prompt:
            described += f"|{system_prompt}"
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()
        """Equal fingerprints write every sample equally."""

    def __call__(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        """Write ``sample``.

        A dropped prompt leaves bos and boi, and pad in the place of each token between them; the
        pads are attended to, as in the authors' guidance. Such a sample has no AIA roles. Samples
        of other tasks than generation ignore ``drop_prompt``.

        Raises:
            ValueError: turns or image tags do not fit the task, a code is out of range or an image
                of another size, or an image is stored as what the model cannot use in its place.
        """
        check_turns(sample)
        return self._write(self._codes.encode(sample), drop_prompt)

    def dry_run(self, sample: RawSample) -> TokenizedSample:
        """See ``SampleEncoder``; not even the header of a picture is read."""
        check_turns(sample)
        return self._write(self._codes.stand_in(sample), drop_prompt=False)

    @property
    def tokenizer(self) -> TextTokenizer:
        """See ``SampleEncoder``."""
        return self._tokenizer

    @property
    def token_names(self) -> TokenNames:
        """See ``SampleEncoder``."""
        ids = self.vocabulary
        return TokenNames(
            special={token: NAMES[name] for name, token in vars(self.special_tokens).items()},
            codes=range(ids.first_code, ids.image_slot),
            others_in_images={ids.image_slot: "slots"},
        )

    def _write(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        builder = SampleBuilder()
        builder.add([self.special_tokens.bos], Kind.PROMPT)
        if sample.task == Task.GENERATION:
            self._write_generation(builder, sample, drop_prompt)
        else:
            self._write_chat(builder, sample)
        is_dropped = drop_prompt and sample.task == Task.GENERATION
        return builder.finish(sample, self.sets, is_active=not is_dropped)

    def _write_generation(
        self, builder: SampleBuilder, sample: RawSample, drop_prompt: bool
    ) -> None:
        self._write_question(builder, sample, sample.turns[0].text, iter(()))
        if drop_prompt:
            builder.tokens[1:] = [np.full(len(builder) - 1, self.special_tokens.pad)]
        self._write_drawn(builder, sample, sample.images[0])

    def _write_chat(self, builder: SampleBuilder, sample: RawSample) -> None:
        images = iter(sample.images)
        if self._system_prompt:
            builder.add(self._tokenizer.encode(f"{self._system_prompt}\n\n"), Kind.PROMPT)
        for human, gpt in zip(sample.turns[::2], sample.turns[1::2], strict=True):
            self._write_question(builder, sample, human.text, images)
            self._write_answer(builder, sample, gpt.text, images)

    def _write_question(
        self, builder: SampleBuilder, sample: RawSample, text: str, images: Iterator[Image]
    ) -> None:
        """Write a turn of the user and the assistant's mark."""
        pieces = images_first(split_at_tags(text.strip(), images))
        if sum(isinstance(piece, str) for piece in pieces) <= 1:
            pieces = _one_a_line(pieces)
        framed: list[str | Image] = [": ", *pieces, "\n\n"] if pieces else [":"]
        builder.add([self.special_tokens.user], Kind.PROMPT)
        for piece in join_texts(framed):
            if isinstance(piece, str):
                builder.add(self._tokenizer.encode(piece), Kind.PROMPT)
            else:
                self._write_seen(builder, sample, piece)
        builder.add([self.special_tokens.assistant], Kind.PROMPT)
        builder.add(self._tokenizer.encode(":"), Kind.PROMPT)

    def _write_answer(
        self, builder: SampleBuilder, sample: RawSample, text: str, images: Iterator[Image]
    ) -> None:
        pieces = split_at_tags(text.strip(), images)
        for number, piece in enumerate(pieces):
            if isinstance(piece, str):
                answer = piece if number else f" {piece}"
                builder.add(self._tokenizer.encode(answer), Kind.ANSWER)
            else:
                self._write_drawn(builder, sample, piece)
                builder.add([self.special_tokens.eoi], Kind.IMAGE_DELIMITER)
        ends_in_image = bool(pieces) and not isinstance(pieces[-1], str)
        builder.add(
            [self.special_tokens.eos], Kind.IMAGE_DELIMITER if ends_in_image else Kind.ANSWER
        )

    def _write_seen(self, builder: SampleBuilder, sample: RawSample, picture: Image) -> None:
        if isinstance(picture, np.ndarray):
            raise ValueError(
                f"sample {sample.key}: an image to look at is stored as codes, and Janus-Pro looks "
                "at pictures; build the shards again with --understanding-images pictures"
            )
        builder.add([self.special_tokens.boi], Kind.PROMPT)
        builder.add(np.full(self.grid * self.grid, self.vocabulary.image_slot), Kind.INPUT_IMAGE)
        builder.images.append(
            ImageSource(len(builder), partial(load_square, picture, self.image_size))
        )
        builder.add([self.special_tokens.eoi], Kind.PROMPT)

    def _write_drawn(self, builder: SampleBuilder, sample: RawSample, codes: Image) -> None:
        if not isinstance(codes, np.ndarray):
            raise ValueError(
                f"sample {sample.key}: an image to draw is stored as a picture; pass "
                "--image-tokenizer, or build the shards again with it, to give the image codes"
            )
        check_codes(sample, codes, self.vocabulary.codebook_size)
        if codes.shape != (self.grid, self.grid):
            raise ValueError(
                f"sample {sample.key}: an image of {codes.shape[0]} x {codes.shape[1]} codes, and "
                f"the model draws {self.grid} x {self.grid}; build the shards again with "
                f"--image-area {self.image_size * self.image_size}"
            )
        builder.add([self.special_tokens.boi], Kind.PROMPT)
        builder.add(codes.ravel() + self.vocabulary.first_code, Kind.OUTPUT_IMAGE)


def _one_a_line(pieces: list[str | Image]) -> list[str | Image]:
    """Put a line break behind every piece but the last; images come first, then their text."""
    lines: list[str | Image] = []
    for piece in pieces:
        lines += [piece.strip() if isinstance(piece, str) else piece, "\n"]
    return lines[:-1]
