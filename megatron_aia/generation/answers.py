"""Many questions: shared by replicas, answered in batches, begun again where a command stopped."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from tqdm import tqdm

from megatron_aia.generation.answering import Answer, AnswerSettings, answer_questions
from megatron_aia.generation.options import AnsweringOptions
from megatron_aia.generation.questions import AskedQuestion, QuestionOptions
from megatron_aia.generation.sampling import Sampling, row_key
from megatron_aia.generation.session import Session
from megatron_aia.models.inference import Question
from megatron_aia.runtime.atomic import write_text
from megatron_aia.runtime.parallel import broadcast_failure
from megatron_aia.shards.raw_sample import Turn

_T = TypeVar("_T")


class AnswersFile:
    """A file of answers, one JSON object a line in the order of the questions.

    While it is made, finished batches stand in a folder beside it.

    Args:
        path: of the file.
        questions: all of them.
        settings: that decide the answers, as plain values.
        batch_size: questions of a batch.
    """

    def __init__(
        self,
        path: Path,
        questions: Sequence[AskedQuestion],
        settings: Mapping[str, Any],
        batch_size: int,
    ) -> None:
        self._path, self._questions = path, questions
        self.batches = list(plan_batches(questions, batch_size))
        asked = [repr(question) for question in questions]
        described = json.dumps([asked, dict(settings), batch_size])
        digest = hashlib.sha256(described.encode()).hexdigest()[:16]
        self._parts = path.with_name(f".{path.name}.{digest}.parts")

    def open(self) -> None:
        """Begin, or go on; parts of other settings are removed.

        Raises:
            ValueError: the file is there.
        """
        if self._path.exists():
            raise ValueError(f"--answers {self._path} exists; choose another file or remove it")
        for other in self._path.parent.glob(f".{self._path.name}.*.parts"):
            if other != self._parts:
                shutil.rmtree(other)
        self._parts.mkdir(parents=True, exist_ok=True)

    def is_done(self, batch: int) -> bool:
        """Return whether a batch is there."""
        return self._part(batch).is_file()

    def save(self, batch: int, answers: Sequence[Answer]) -> None:
        """Write a batch."""
        lines = []
        for number, answer in zip(self.batches[batch], answers, strict=True):
            line = {"key": self._questions[number].key, "answer": answer.text}
            lines.append(json.dumps({**line, "complete": answer.is_complete}, ensure_ascii=False))
        write_text(self._part(batch), "\n".join(lines) + "\n")

    def finish(self) -> None:
        """Join all batches to the file."""
        parts = (self._part(batch).read_text("utf-8") for batch in range(len(self.batches)))
        write_text(self._path, "".join(parts))
        shutil.rmtree(self._parts)

    def _part(self, batch: int) -> Path:
        return self._parts / f"{batch:06d}.jsonl"


def plan_batches(questions: Sequence[AskedQuestion], size: int) -> Iterator[range]:
    """Yield batches of neighbours that have the same options."""
    start = 0
    for _, group in groupby(questions, key=lambda question: question.options):
        stop = start + len(list(group))
        for first in range(start, stop, size):
            yield range(first, min(first + size, stop))
        start = stop


def answer_settings(options: QuestionOptions, command: AnsweringOptions) -> AnswerSettings:
    """Return how questions with these options are answered.

    A question that says whether to sample says it for itself; else the command does.
    """

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    temperature = given(options.temperature, command.temperature)
    if options.do_sample is not None:
        temperature = (temperature or 1.0) if options.do_sample else 0.0
    sampling = Sampling(
        temperature, given(options.top_k, command.top_k), given(options.top_p, command.top_p)
    )
    tokens = given(options.max_new_tokens, command.max_new_tokens)
    return AnswerSettings(tokens, sampling, options.until)


def write_question(session: Session, question: AskedQuestion) -> Question:
    """Write a question as tokens, with its pictures.

    Raises:
        ValueError: it leaves no room for an answer, or a picture is damaged; the text names it.
    """
    turns = (Turn("human", question.text),)
    written = session.inference.question(turns, question.pictures, question.key)
    check_room(session, len(written.prompt), question.key)
    return written


def check_questions(session: Session, questions: Sequence[AskedQuestion]) -> None:
    """Check all questions before the first is answered; no picture is decoded.

    Raises:
        ValueError: see ``write_question``.
    """
    for question in questions:
        turns = (Turn("human", question.text),)
        length = session.inference.question_length(turns, question.pictures, question.key)
        check_room(session, length, question.key)


def check_room(session: Session, tokens: int, name: str) -> None:
    """Check that a question leaves room for an answer.

    Raises:
        ValueError: it does not.
    """
    context = session.config.model.max_position_embeddings
    if tokens >= context:
        raise ValueError(
            f"question {name}: {tokens} tokens leave no room for an answer, the model's context is "
            f"{context} (--max-position-embeddings); shorten it or use fewer pictures"
        )


def answer_all(
    session: Session,
    questions: Sequence[AskedQuestion],
    command: AnsweringOptions,
    seed: int,
    file: AnswersFile,
) -> int:
    """Answer what is not answered yet; every rank calls this.

    Returns:
        How many questions were answered.

    Raises:
        ValueError: on every rank, if a question cannot be asked or an answer not be written.
    """
    todo = [batch for batch in range(len(file.batches)) if not file.is_done(batch)]
    found = [todo]
    dist.broadcast_object_list(found, src=0, group=session.parallel.control)
    todo = found[0]
    total = sum(len(file.batches[batch]) for batch in todo)
    with tqdm(total=total, unit="question", disable=None if dist.get_rank() == 0 else True) as bar:
        for start in range(0, len(todo), session.replicas):
            now = todo[start : start + session.replicas]
            # A replica without a batch only tells the others that it has not failed.
            batch, *_ = [*now[session.replica :], 0]
            has_work = session.replica < len(now)
            asked = [questions[i] for i in file.batches[batch]] if has_work else []
            written = _on_speaker(session, asked, partial(_write_all, session, asked))
            answers = _answer(session, asked, written, command, seed) if asked else []
            _on_speaker(session, asked, partial(file.save, batch, answers))
            bar.update(sum(len(file.batches[batch]) for batch in now))
    return total


def _write_all(session: Session, asked: Sequence[AskedQuestion]) -> list[Question]:
    return [write_question(session, question) for question in asked]


def _on_speaker(session: Session, work: Sequence[Any], action: Callable[[], _T]) -> _T | None:
    """Act on the speaker of each replica that has work; where it fails on one, every rank raises.

    Returns:
        What ``action`` returned, on the ranks that called it.
    """
    error: Exception | None = None
    result: _T | None = None
    if work and session.speaks_for_replica:
        try:
            result = action()
        except OSError as caught:
            error = ValueError(f"answers cannot be written: {caught}")
        except ValueError as caught:
            error = caught
    broadcast_failure(error, session.parallel.control)
    return result


def _answer(
    session: Session,
    asked: Sequence[AskedQuestion],
    written: Sequence[Question] | None,
    command: AnsweringOptions,
    seed: int,
) -> list[Answer]:
    """Answer a batch that the speaker of the replica has written."""
    group = session.parallel.groups.mp
    if group.size() > 1:
        shared = [written]
        dist.broadcast_object_list(shared, src=session.speaker, group=group)
        written = shared[0]
    assert written is not None
    return answer_questions(
        *session.model,
        written,
        [row_key(seed, question.key, question.text) for question in asked],
        answer_settings(asked[0].options, command),
        session.config.model.max_position_embeddings,
    )
