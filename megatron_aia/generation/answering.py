"""The loop that answers: text until a token or a string that ends it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_aia.aia.roles import Task
from megatron_aia.generation.decoder import Decoder
from megatron_aia.generation.sampling import RowNoise, Sampling, choose_ids
from megatron_aia.models.inference import Inference, Question, send_images
from megatron_aia.runtime.device import device
from megatron_aia.runtime.parallel import Parallel

_LOOK_EVERY = 8
"""Steps between two looks at what is written: each makes a GPU wait."""


@dataclass(frozen=True)
class AnswerSettings:
    """How the questions of a batch are answered."""

    max_new_tokens: int
    """Most tokens of an answer, the one that ends it included."""
    sampling: Sampling
    until: tuple[str, ...] = ()
    """An answer ends before the first of these strings."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote."""

    ids: tuple[int, ...]
    """With the token that ended it, if one did."""
    text: str
    """Without special tokens, and without the string that ended it."""
    is_complete: bool
    """Whether it ended by itself, not by the number of its tokens."""


def answer_questions(
    chunks: Sequence[Any],
    inference: Inference,
    parallel: Parallel,
    questions: Sequence[Question],
    keys: Sequence[int],
    options: AnswerSettings,
    context: int,
    show: Callable[[Sequence[Answer]], None] = lambda answers: None,
) -> list[Answer]:
    """Answer a batch of questions; every rank of a replica calls this.

    Args:
        chunks: of this process, as ``decoding`` gives them.
        inference: of the family.
        parallel: of the run.
        questions: what is asked.
        keys: of each, by ``row_key``.
        options: of all.
        context: most tokens of question and answer together.
        show: gets what is written so far, now and then.

    Returns:
        The answers, on every rank.
    """
    limits = [min(options.max_new_tokens, context - len(q.prompt)) for q in questions]
    steps = max(limits)
    prompts = [question.prompt for question in questions]
    lane = inference.encoder.lane(Task.UNDERSTANDING)
    decoder = Decoder(chunks, inference, parallel, prompts, steps - 1, lane)
    places = decoder.send_places(torch.full((decoder.rows, 1), inference.answer_ids.start))
    pick = partial(_pick, inference, options.sampling, RowNoise(keys))
    written = torch.empty(len(questions), steps, dtype=torch.int64, device=device())
    hidden = decoder.read_prompts(send_images(questions))
    answers: list[Answer] = []
    for step in range(steps):
        ids = decoder.choose(hidden, inference.answer_logits, pick, len(questions))
        written[:, step] = ids
        if (step + 1) % _LOOK_EVERY == 0 or step + 1 == steps:
            rows = written[:, : step + 1].tolist()
            answers = [
                _cut(inference, row[:limit], options.until)
                for row, limit in zip(rows, limits, strict=True)
            ]
            show(answers)
            ended = (a.is_complete or step + 1 >= n for a, n in zip(answers, limits, strict=True))
            if all(ended):
                break
        hidden = decoder.feed(ids.unsqueeze(1), places)
    return answers


def _pick(inference: Inference, sampling: Sampling, noise: RowNoise, logits: Tensor) -> Tensor:
    drawn = None
    if not sampling.is_greedy:
        everyone = torch.ones(len(logits), dtype=torch.bool).numpy()
        drawn = noise.draw(logits.shape[1], everyone, logits.device)
    return choose_ids(logits, sampling, drawn) + inference.answer_ids.start


def _cut(inference: Inference, ids: list[int], until: Sequence[str]) -> Answer:
    """Return the answer that ``ids`` begin with."""
    end = next((n + 1 for n, token in enumerate(ids) if token in inference.stop_ids), None)
    text = inference.text(ids[:end])
    found = [text.find(string) for string in until if string in text]
    if found:
        text = text[: min(found)]
    return Answer(tuple(ids[:end]), text.strip(), end is not None or bool(found))
