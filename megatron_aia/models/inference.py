"""What a family says of drawing and answering: prompts, forced tokens, heads, the end of an answer.

A prompt is a training sample whose part to learn is left out. So what a model is asked is written
as in training, to the token: the prompt ends before the first label, and what stands between the
codes of an image without being one, as the ends of rows, is forced.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_aia.aia.roles import Task
from megatron_aia.attention.decoding import DecodeState
from megatron_aia.data.sample import SampleEncoder, TokenizedSample
from megatron_aia.shards.raw_sample import IMAGE_TAG, Picture, RawSample, Turn

FREE = -1
"""In a plan: the model chooses this token."""
RATIOS = ("1:1", "4:3", "3:4", "16:9", "9:16", "3:2", "2:3")
"""Width to height of a picture: those that models are trained on."""


@dataclass(frozen=True)
class DrawingDefaults:
    """How a family's authors draw; a user's own value takes the place of each."""

    guidance_scale: float
    top_k: int
    """0: all."""
    temperature: float = 1.0
    top_p: float = 1.0
    prompt_suffix: str = ""
    """Behind every prompt."""
    negative_prompt: str | None = None
    """What guidance leads away from; None: the prompt of training that was dropped."""
    image_area: int = 0
    """Pixels of a picture."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """One picture to be drawn, in tokens."""

    prompt: np.ndarray
    """int64 ``[n]``, up to the token before the first code."""
    unguided: np.ndarray
    """int64, likewise: what guidance leads away from."""
    plan: np.ndarray
    """int64 ``[m]``: the tokens behind the prompt, ``FREE`` where a code is to be chosen."""
    grid: tuple[int, int]
    """Rows and columns of the codes."""

    @property
    def steps(self) -> int:
        """Tokens until the last code; what follows needs no model."""
        return int(np.flatnonzero(self.plan == FREE)[-1]) + 1


@dataclass(frozen=True, eq=False)
class Question:
    """One question, in tokens."""

    prompt: np.ndarray
    """int64 ``[n]``, up to the token before the answer."""
    images: tuple[np.ndarray, ...] = ()
    """uint8 ``[3, side, side]``: pictures to look at that are no codes among the tokens."""


class Inference(ABC):
    """How a model of a family draws and answers.

    Args:
        encoder: that wrote its training samples.
    """

    defaults: DrawingDefaults
    code_ids: range
    """Ids of image tokens; where a token is one code, code 0 first."""
    code_depth: int = 1
    """Codes of an image token, chosen one after the other."""
    answer_ids: range
    """Ids that may be chosen while a text is written."""
    text_ids: range
    """Those among them that the text tokeniser decodes; the others are not shown."""
    stop_ids: tuple[int, ...]
    """Ids that end an answer."""

    def __init__(self, encoder: SampleEncoder) -> None:
        self.encoder = encoder

    @abstractmethod
    def grid(self, ratio: str, image_area: int) -> tuple[int, int]:
        """Return rows and columns of the codes of a picture.

        Raises:
            ValueError: the model does not draw such pictures.
        """

    @abstractmethod
    def code_logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Return the logits of the first code of a token, float32 ``[b, codes]``, on every tensor
        rank.

        Args:
            model: the last chunk.
            hidden: ``[b, h]`` of the last token of each row.
        """

    def next_code_logits(self, model: Any, hidden: Tensor, known: Tensor) -> Tensor:
        """Return the logits of the code behind those that are known, int64 ``[b, d]``."""
        assert not known.shape[1], "a token is one code"
        return self.code_logits(model, hidden)

    def image_tokens(self, codes: Tensor) -> Tensor:
        """Return the ids of image tokens, int64 ``[b]``, of codes ``[b, code_depth]``."""
        return codes[:, 0] + self.code_ids.start

    def answer_logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Return the logits of ``answer_ids``, float32 ``[b, ids]``; see ``code_logits``."""
        logits: Tensor = model.vocabulary_logits(hidden, self.answer_ids)
        return logits

    def run(
        self,
        chunk: Any,
        tokens: Tensor,
        positions: Tensor,
        state: DecodeState,
        images: Tensor | None,
        places: Mapping[str, Tensor],
    ) -> Tensor:
        """Run a chunk over the tokens that follow those in ``state``.

        Args:
            chunk: unwrapped; its core attentions are ``CachedCoreAttention``.
            tokens: int64 ``[b, new]``.
            positions: int64 ``[b, new]``.
            state: of the batch.
            images: uint8 ``[n, 3, side, side]`` of the whole batch, in the order of their tokens.
            places: what ``places`` returned for these tokens, or others of the same kinds.

        Returns:
            Hidden states ``[new, b, h]``, on the last chunk ``[b, h]`` of the last token.
        """
        output: Tensor = chunk(
            tokens, positions, None, extra_block_kwargs={"attention_bias": state}
        )
        return output

    def places(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return where tokens stand that the model treats apart, from int64 ``[b, new]``, on the
        host.
        """
        return {}

    def drawing(self, prompt: str, negative: str | None, grid: tuple[int, int]) -> Drawing:
        """Write a prompt.

        Args:
            prompt: the words, with a suffix if there is to be one.
            negative: words that guidance leads away from; None or "": a dropped prompt.
            grid: of the codes.
        """
        shape = (*grid, *([self.code_depth] if self.code_depth > 1 else []))
        written = self.encoder(_generation(prompt, shape), False)
        other = self.encoder(_generation(negative or prompt, shape), not negative)
        start, start_of_other = _first_label(written), _first_label(other)
        plan = np.where(written.label_weights > 0, FREE, written.tokens)[start:]
        return Drawing(
            written.tokens[:start], other.tokens[:start_of_other], plan, (grid[0], grid[1])
        )

    def codes(self, drawing: Drawing, ids: np.ndarray) -> np.ndarray:
        """Return the codes of a drawn picture, int64 ``[rows, columns]``, or ``[rows, columns,
        code_depth]``.

        Args:
            drawing: what was to be drawn.
            ids: int64 ``[m]``, the tokens behind the prompt.
        """
        chosen = ids[drawing.plan == FREE] - self.code_ids.start
        return chosen.reshape(drawing.grid)

    def question(
        self, turns: Sequence[Turn], pictures: Sequence[np.ndarray | Picture], name: str
    ) -> Question:
        """Write a conversation up to where the next answer begins.

        Args:
            turns: human, gpt, ..., human; ``<image>`` in a text marks where a picture stands.
            pictures: in the order of their tags.
            name: that an error gives the question.

        Raises:
            ValueError: turns do not alternate, or pictures do not fit tags or model.
        """
        written = self.encoder(_conversation(turns, pictures, name), False)
        images = tuple(image.load() for image in written.images)
        # The last token ends the empty answer.
        return Question(written.tokens[:-1], images)

    def question_length(
        self, turns: Sequence[Turn], pictures: Sequence[np.ndarray | Picture], name: str
    ) -> int:
        """Return the tokens that ``question`` would write; no picture is decoded.

        Raises:
            ValueError: as ``question``.
        """
        return len(self.encoder.dry_run(_conversation(turns, pictures, name))) - 1

    def text(self, ids: Sequence[int]) -> str:
        """Return the words of an answer; white space at its ends is no part of it."""
        return self.encoder.tokenizer.decode([i for i in ids if i in self.text_ids]).strip()


def check_one_square(ratio: str, image_area: int, own_area: int) -> None:
    """Refuse what a model that draws squares of one size cannot draw.

    Raises:
        ValueError: another ratio or area is asked for.
    """
    if ratio != "1:1":
        raise ValueError(f"--ratio {ratio}: this model draws squares only; use 1:1")
    if image_area != own_area:
        raise ValueError(
            f"--image-area {image_area}: this model draws {own_area} pixels; leave it out"
        )


def _generation(prompt: str, shape: tuple[int, ...]) -> RawSample:
    turns = (Turn("human", prompt), Turn("gpt", IMAGE_TAG))
    return RawSample("a prompt", Task.GENERATION, turns, (np.zeros(shape, np.int64),))


def _conversation(
    turns: Sequence[Turn], pictures: Sequence[np.ndarray | Picture], name: str
) -> RawSample:
    """Return a conversation whose last answer is empty."""
    task = Task.UNDERSTANDING if pictures else Task.TEXT
    return RawSample(name, task, (*turns, Turn("gpt", "")), tuple(pictures))


def _first_label(sample: TokenizedSample) -> int:
    return int(np.flatnonzero(sample.label_weights)[0])


def send_images(questions: Sequence[Question]) -> Tensor | None:
    """Return the pictures of a batch on the host, uint8 ``[n, 3, side, side]``; None for none."""
    images = [image for question in questions for image in question.images]
    return torch.from_numpy(np.stack(images)) if images else None
