"""A conversation at a terminal: rank 0 talks, every rank computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from megatron_aia.generation.answering import Answer, AnswerSettings, answer_questions
from megatron_aia.generation.answers import answer_settings, check_room
from megatron_aia.generation.options import ChatOptions
from megatron_aia.generation.questions import FilePicture, QuestionOptions, with_tags
from megatron_aia.generation.sampling import row_key
from megatron_aia.generation.session import Session
from megatron_aia.models.inference import Question
from megatron_aia.shards.raw_sample import Turn

HELP = "/image FILE adds a picture to the next question, /reset begins anew, /quit ends"


class Terminal(Protocol):
    """Where somebody asks."""

    def read(self) -> str | None:
        """Return the next line; None at the end."""

    def write(self, text: str) -> None:
        """Show a part of a line."""


@dataclass
class Conversation:
    """What was said so far, and the pictures of the next question."""

    turns: list[Turn] = field(default_factory=list)
    pictures: list[FilePicture] = field(default_factory=list)
    waiting: list[FilePicture] = field(default_factory=list)

    def asked(self, text: str) -> "Conversation":
        """Return the conversation with another question."""
        turn = Turn("human", with_tags(text, len(self.waiting), "the question"))
        return Conversation([*self.turns, turn], [*self.pictures, *self.waiting])

    def answered(self, text: str) -> "Conversation":
        """Return the conversation with an answer."""
        return Conversation([*self.turns, Turn("gpt", text)], self.pictures)


def converse(session: Session, options: ChatOptions, terminal: Terminal) -> None:
    """Talk until the end; every rank calls this, and only that of rank 0 uses ``terminal``."""
    talk = Conversation(waiting=[FilePicture(path) for path in options.image])
    settings = answer_settings(QuestionOptions(), options)
    while True:
        found: list[Question | None] = [None]
        asked = talk
        if dist.get_rank() == 0:
            asked, found[0] = _next_question(session, talk, terminal)
        dist.broadcast_object_list(found, src=0, group=session.parallel.control)
        if found[0] is None:
            return
        key = row_key(options.seed, len(asked.turns))
        shown = _Shown(terminal.write if dist.get_rank() == 0 else lambda text: None)
        (answer,) = _answer(session, found[0], key, settings, shown.show)
        shown.end()
        talk = asked.answered(answer.text)


def _answer(
    session: Session,
    question: Question,
    key: int,
    settings: AnswerSettings,
    show: Callable[[Sequence[Answer]], None],
) -> list[Answer]:
    context = session.config.model.max_position_embeddings
    return answer_questions(*session.model, [question], [key], settings, context, show)


def _next_question(
    session: Session, talk: Conversation, terminal: Terminal
) -> tuple[Conversation, Question | None]:
    """Read lines until there is a question; None ends the conversation."""
    while True:
        terminal.write("> ")
        line = terminal.read()
        word, _, rest = (line or "/quit").strip().partition(" ")
        if word == "/quit":
            return talk, None
        if word == "/reset":
            talk = Conversation()
        elif word == "/image" and Path(rest.strip()).is_file():
            talk.waiting.append(FilePicture(Path(rest.strip())))
        elif word == "/image":
            terminal.write(f"no file {rest.strip()!r}\n")
        elif word.startswith("/"):
            terminal.write(f"{HELP}\n")
        elif word:
            try:
                assert line is not None
                asked = talk.asked(line.strip())
                question = session.inference.question(asked.turns, asked.pictures, "asked")
                check_room(session, len(question.prompt), "asked")
                return asked, question
            except ValueError as error:
                terminal.write(f"{error}\n")


class _Shown:
    """Shows an answer while it grows."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._shown = write, ""

    def show(self, answers: Sequence[Answer]) -> None:
        # A letter may be written by several tokens: until then it is the replacement character.
        text = answers[0].text if answers[0].is_complete else answers[0].text.rstrip("\ufffd")
        if text.startswith(self._shown):
            self._write(text[len(self._shown) :])
            self._shown = text

    def end(self) -> None:
        self._write("\n")
