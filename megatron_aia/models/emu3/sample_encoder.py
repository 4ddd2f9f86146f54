"""How Emu3 writes a sample: tokens, next-token labels, and the queries and keys of the AIA term.

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

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.data.sample import SampleEncoder, TokenizedSample
from megatron_aia.data.token_names import TokenNames
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.models.emu3.vocabulary import Emu3Vocabulary
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
from megatron_aia.shards.raw_sample import RawSample

SYSTEM_PROMPT = "You are a helpful assistant."
"""Of training."""
_LATER_LEAD = " USER: "
_ANSWER_LEAD = ". ASSISTANT:"


class Emu3SampleEncoder(SampleEncoder):
    """The ``SampleEncoder`` of Emu3.

    Args:
        vocabulary: ids of the model.
        tokenizer: text tokeniser; all of its ids must be text ids of ``vocabulary``.
        sets: queries and keys of the intensity. ``paper`` are those of the paper's text:

            - generation: queries are the drawn codes; keys are all tokens before the first of them,
              bos and the image's head (boi, size, img) included.
            - understanding: queries are the answer tokens with a label; keys are the codes and row
              ends of the image, which Hugging Face's Emu3 also counts as its image tokens.

            ``released_code`` carries over the off-by-ones of the authors' Janus-Pro code: the last
            drawn code is no query, and both sets of keys lie one token to the left. So generation
            loses img, and understanding gains img and loses the last row end.
        images: makes the codes of images that are stored as pictures.
        system_prompt: begins a conversation.

    Raises:
        ValueError: the tokeniser has more ids than the vocabulary has text ids.
    """

    def __init__(
        self,
        vocabulary: Emu3Vocabulary,
        tokenizer: TextTokenizer,
        sets: Sets = "paper",
        images: ImageTokenizer | None = None,
        system_prompt: str = SYSTEM_PROMPT,
    ) -> None:
        if tokenizer.vocab_size > vocabulary.text_size:
            raise ValueError(
                f"the tokeniser has {tokenizer.vocab_size} ids and the model {vocabulary.text_size}"
                " text ids; set --text-vocab-size or choose the model's own --tokenizer-model"
            )
        self.vocabulary = vocabulary
        self.pad_id = vocabulary.pad
        self._tokenizer = tokenizer
        self.sets = sets
        self._codes = PictureCodes(images)
        self._system_prompt = system_prompt
        described = (
            f"emu3 prompt 1|{vocabulary}|{tokenizer.fingerprint}|{fingerprint_of_sets(sets)}"
        )
        described += self._codes.fingerprint
        if system_prompt != SYSTEM_PROMPT:
            described += f"|{system_prompt}"
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()
        """Equal fingerprints write every sample equally."""

    def __call__(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        """Write ``sample``.

        A dropped prompt leaves bos directly before boi, as Emu3's training code does; such a
        sample has no AIA roles. Samples of other tasks than generation ignore ``drop_prompt``.

        Raises:
            ValueError: turns or image tags do not fit the task, a code is out of range, or an
                image is stored as a picture that is damaged or that nothing makes codes of.
        """
        check_turns(sample)
        return self._write(self._codes.encode(sample), drop_prompt)

    def dry_run(self, sample: RawSample) -> TokenizedSample:
        """See ``SampleEncoder``."""
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
        names = ("pad", "bos", "eos", "boi", "img", "eof", "eoi")
        return TokenNames(
            special={getattr(ids, name): f"<{name}>" for name in names},
            codes=range(ids.first_visual, ids.size),
            others_in_images={ids.eol: "row ends"},
        )

    def _write(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        for codes in sample.codes:
            check_codes(sample, codes, self.vocabulary.codebook_size)
        if sample.task == Task.GENERATION:
            builder = self._write_generation(sample, drop_prompt)
        else:
            builder = self._write_chat(sample)
        is_dropped = drop_prompt and sample.task == Task.GENERATION
        return builder.finish(sample, self.sets, is_active=not is_dropped)

    def _write_generation(self, sample: RawSample, drop_prompt: bool) -> SampleBuilder:
        builder = SampleBuilder()
        builder.add([self.vocabulary.bos], Kind.PROMPT)
        if not drop_prompt:
            builder.add(self._tokenizer.encode(sample.turns[0].text), Kind.PROMPT)
        self._write_image(builder, sample.codes[0], Kind.OUTPUT_IMAGE)
        return builder

    def _write_chat(self, sample: RawSample) -> SampleBuilder:
        builder = SampleBuilder()
        builder.add([self.vocabulary.bos], Kind.PROMPT)
        codes = iter(sample.codes)
        lead = f"{self._system_prompt}{_LATER_LEAD}".lstrip()
        for human, gpt in zip(sample.turns[::2], sample.turns[1::2], strict=True):
            question = images_first(split_at_tags(human.text, codes))
            for piece in join_texts([lead, *question, _ANSWER_LEAD]):
                self._write_piece(builder, piece, Kind.PROMPT, Kind.INPUT_IMAGE)
            answer = split_at_tags(gpt.text, codes)
            for piece in answer:
                self._write_piece(builder, piece, Kind.ANSWER, Kind.OUTPUT_IMAGE)
            ends_in_image = bool(answer) and not isinstance(answer[-1], str)
            builder.add(
                [self.vocabulary.eos], Kind.IMAGE_DELIMITER if ends_in_image else Kind.ANSWER
            )
            lead = _LATER_LEAD
        return builder

    def _write_piece(
        self, builder: SampleBuilder, piece: str | np.ndarray, text_kind: Kind, image_kind: Kind
    ) -> None:
        if isinstance(piece, str):
            builder.add(self._tokenizer.encode(piece), text_kind)
        else:
            self._write_image(builder, piece, image_kind)

    def _write_image(self, builder: SampleBuilder, codes: np.ndarray, kind: Kind) -> None:
        height, width = codes.shape
        ids = self.vocabulary
        size = self._tokenizer.encode(f"{height}*{width}")
        builder.add([ids.boi, *size, ids.img], Kind.PROMPT)
        block = np.full((height, width + 1), ids.eol, np.int64)
        block[:, :width] = codes.astype(np.int64) + ids.first_visual
        kinds = np.full(block.shape, kind, np.uint8)
        if kind == Kind.OUTPUT_IMAGE:
            kinds[:, width] = Kind.IMAGE_DELIMITER
        builder.add(block.ravel(), kinds.ravel())
        builder.add(
            [ids.eof, ids.eoi], Kind.IMAGE_DELIMITER if kind == Kind.OUTPUT_IMAGE else Kind.PROMPT
        )
