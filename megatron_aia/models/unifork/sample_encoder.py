r"""How UniFork writes a sample: tokens, labels, and the queries and keys of the AIA term.

::

    generation     <|im_start|> "USER: {prompt} ASSISTANT: " begin  grid * grid image tokens
    dropped        <|im_start|> "USER: " <|video_pad|> ". ASSISTANT: " begin  image tokens
    understanding  <|im_start|> "{system} USER: " begin image tokens end "\n{text} ASSISTANT:"
                   " {answer}" <|im_end|>
    text           the same without an image
    later turns    "USER: {text} ASSISTANT:" " {answer}" <|im_end|>

These are the forms of the authors' second and third stage. An image stands first in its turn,
whatever the record says, and every image is whole. The quoted texts are encoded one by one; the
answer begins with a space of its own.

No label stands on ``begin`` and ``end``. A sample that looks and draws would have to pass both
branches and is refused.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.data.sample import SampleEncoder, TokenizedSample
from megatron_aia.data.token_names import TokenNames
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.picture_codes import PictureCodes
from megatron_aia.models.sample_builder import (
    Kind,
    SampleBuilder,
    Sets,
    check_turns,
    fingerprint_of_sets,
    split_at_tags,
)
from megatron_aia.models.unifork.special_tokens import (
    NAMES,
    SYSTEM_PROMPT,
    UniForkSpecialTokens,
)
from megatron_aia.models.unifork.vocabulary import UniForkVocabulary
from megatron_aia.shards.image_tokenizer import ImageTokenizer
from megatron_aia.shards.raw_sample import Picture, RawSample

Image = np.ndarray | Picture


class UniForkSampleEncoder(SampleEncoder):
    """The ``SampleEncoder`` of UniFork.

    Args:
        vocabulary: ids of the model.
        tokenizer: text tokeniser; all of its ids must be text ids of ``vocabulary``.
        grid: image tokens along a side of an image.
        sets: queries and keys of the intensity.
        images: makes the codes of images that are stored as pictures.
        system_prompt: begins a conversation.

    Raises:
        ValueError: the tokeniser has more ids than the vocabulary has text ids, or ``images`` makes
            images of another size.
    """

    pad_id = 0

    def __init__(
        self,
        vocabulary: UniForkVocabulary,
        tokenizer: TextTokenizer,
        grid: int,
        sets: Sets = "paper",
        images: ImageTokenizer | None = None,
        system_prompt: str = SYSTEM_PROMPT,
    ) -> None:
        self.special_tokens = UniForkSpecialTokens.find(tokenizer)
        highest = max(tokenizer.vocab_size - 1, *vars(self.special_tokens).values())
        if highest >= vocabulary.text_size:
            raise ValueError(
                f"the tokeniser has ids up to {highest} and the model {vocabulary.text_size} "
                "text ids; set --text-vocab-size or choose the model's own --tokenizer-model"
            )
        self.vocabulary = vocabulary
        self.grid = grid
        self._tokenizer = tokenizer
        self._sets = sets
        self._system_prompt = system_prompt
        self._codes = PictureCodes(images, side=grid, depth=vocabulary.depth)
        described = (
            f"unifork prompt 1|{vocabulary}|{tokenizer.fingerprint}|{self.special_tokens}|"
            f"{fingerprint_of_sets(sets)}|{grid}{self._codes.fingerprint}|{system_prompt}"
        )
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()
        """Equal fingerprints write every sample equally."""

    @property
    def tokenizer(self) -> TextTokenizer:
        """See ``SampleEncoder``."""
        return self._tokenizer

    @property
    def token_names(self) -> TokenNames:
        """See ``SampleEncoder``."""
        ids = self.vocabulary
        special = {token: NAMES[name] for name, token in vars(self.special_tokens).items()}
        special |= {ids.begin: "<begin of image>", ids.end: "<end of image>"}
        return TokenNames(special=special, codes=range(ids.first_code, ids.stop))

    def lane(self, task: Task) -> int:
        """Return the number of the branch: 1 draws, 0 does the rest."""
        return int(task == Task.GENERATION)

    def __call__(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        """Write ``sample``.

        A sample without its prompt has no AIA roles. Samples of other tasks than generation ignore
        ``drop_prompt``.

        Raises:
            ValueError: turns or image tags do not fit the task, the sample looks and draws, codes
                are out of range or of another size, or an image is stored as a picture and nothing
                makes its codes.
        """
        check_turns(sample)
        return self._write(self._codes.encode(sample), drop_prompt)

    def dry_run(self, sample: RawSample) -> TokenizedSample:
        """See ``SampleEncoder``; not even the header of a picture is read.

        What stands for a dropped prompt is longer than a very short prompt: the longer one is
        planned.
        """
        check_turns(sample)
        stand_in = self._codes.stand_in(sample)
        return max((self._write(stand_in, drop) for drop in (False, True)), key=len)

    def _write(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        if sample.task == Task.MIXED:
            raise ValueError(
                f"sample {sample.key}: a mixed sample looks and draws, and UniFork has a branch "
                "for each and none for both; leave it out by --task-ratio, or cut it in two"
            )
        builder = SampleBuilder()
        builder.add([self.special_tokens.begin], Kind.PROMPT)
        is_dropped = drop_prompt and sample.task == Task.GENERATION
        if sample.task == Task.GENERATION:
            self._write_generation(builder, sample, drop_prompt)
        else:
            self._write_chat(builder, sample)
        return builder.finish(sample, self._sets, is_active=not is_dropped)

    def _write_generation(
        self, builder: SampleBuilder, sample: RawSample, drop_prompt: bool
    ) -> None:
        encode = self._tokenizer.encode
        if drop_prompt:
            words = [*encode("USER: "), self.special_tokens.dropped, *encode(". ASSISTANT: ")]
        else:
            words = encode(f"USER: {sample.turns[0].text.strip()} ASSISTANT: ")
        builder.add(words, Kind.PROMPT)
        self._write_image(builder, sample, sample.images[0], Kind.OUTPUT_IMAGE)

    def _write_chat(self, builder: SampleBuilder, sample: RawSample) -> None:
        images = iter(sample.images)
        opening = f"{self._system_prompt} USER: ".lstrip()
        for human, gpt in zip(sample.turns[::2], sample.turns[1::2], strict=True):
            self._write_question(builder, sample, opening, human.text, images)
            builder.add(self._tokenizer.encode(f" {gpt.text.strip()}"), Kind.ANSWER)
            builder.add([self.special_tokens.end], Kind.ANSWER)
            opening = "USER: "

    def _write_question(
        self,
        builder: SampleBuilder,
        sample: RawSample,
        opening: str,
        text: str,
        images: Iterator[Image],
    ) -> None:
        """Write a turn of the user and the assistant's mark."""
        pieces = split_at_tags(text, images)
        seen = [piece for piece in pieces if not isinstance(piece, str)]
        words = "".join(piece for piece in pieces if isinstance(piece, str)).strip()
        before = opening if seen else f"{opening}{words} ASSISTANT:"
        builder.add(self._tokenizer.encode(before), Kind.PROMPT)
        for image in seen:
            self._write_image(builder, sample, image, Kind.INPUT_IMAGE)
            builder.add([self.vocabulary.end], Kind.PROMPT)
        if seen:
            line = f"\n{words}" if words else ""
            builder.add(self._tokenizer.encode(f"{line} ASSISTANT:"), Kind.PROMPT)

    def _write_image(
        self, builder: SampleBuilder, sample: RawSample, codes: Image, kind: Kind
    ) -> None:
        """Write the marker before an image, and its tokens."""
        ids = self.vocabulary
        if not isinstance(codes, np.ndarray):
            raise ValueError(
                f"sample {sample.key}: an image is stored as a picture; pass --image-tokenizer, or "
                "build the shards again with it, to give the image codes"
            )
        if codes.shape != (self.grid, self.grid, ids.depth):
            raise ValueError(
                f"sample {sample.key}: image codes have shape {list(codes.shape)}, and the model "
                f"has [{self.grid}, {self.grid}, {ids.depth}]; build the shards again with its own "
                "--image-tokenizer"
            )
        if codes.min() < 0 or codes.max() >= ids.codebook_size:
            raise ValueError(
                f"sample {sample.key}: image codes {codes.min()} to {codes.max()}, but the "
                f"model's codebook_size is {ids.codebook_size}"
            )
        builder.add([ids.begin], Kind.PROMPT)
        builder.add(ids.join_codes(codes.astype(np.int64)).ravel(), kind)
