"""The commands that draw and answer, behind their flags."""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial

import torch.distributed as dist

from megatron_aia.generation.answers import AnswersFile, answer_all, check_questions
from megatron_aia.generation.chat import Terminal, converse
from megatron_aia.generation.options import AnsweringOptions, ChatOptions, GenerateOptions
from megatron_aia.generation.picture_folder import PictureFolder
from megatron_aia.generation.picture_settings import PictureSettings
from megatron_aia.generation.pictures import (
    PictureRequest,
    draw_requests,
    write_drawings,
)
from megatron_aia.generation.prompts import Prompt, read_prompts
from megatron_aia.generation.questions import AskedQuestion, read_questions
from megatron_aia.generation.session import Session, open_session
from megatron_aia.runtime.parallel import broadcast_failure, leave_process_group


def generate(options: GenerateOptions, world_size: int) -> str:
    """Draw ``num_images`` pictures of every prompt; every rank calls this.

    Returns:
        A line for the user.

    Raises:
        ValueError: on every rank; one line with a remedy.
    """
    prompts = _read_prompts(options)
    area = options.image_area
    with open_session(options, world_size, draws=True, image_area=area) as session:
        settings = PictureSettings.resolve(options, session.inference, options.seed)
        requests = [
            PictureRequest(prompt, number)
            for prompt in prompts
            for number in range(options.num_images)
        ]
        drawings = write_drawings(session, settings, requests)
        described = {**describe_model(session), **settings.describe()}
        folder = PictureFolder(options.output, requests, described)
        on_first_rank(session, folder.open)
        start = time.perf_counter()
        drawn = draw_requests(
            session,
            settings,
            requests,
            drawings,
            folder.is_done,
            folder.save,
            options.batch_size,
        )
        seconds = time.perf_counter() - start
        on_first_rank(session, folder.finish)
    leave_process_group()
    rate = f"{drawn / seconds:.2g} pictures/s" if drawn else "all were there"
    return f"{drawn} of {len(requests)} pictures drawn, {rate}: {options.output}"


def _read_prompts(options: GenerateOptions) -> list[Prompt]:
    if options.prompts is not None and options.prompt is None:
        return read_prompts(options.prompts)
    if options.prompt is None or options.prompts is not None:
        raise ValueError("pass either --prompt TEXT or --prompts FILE")
    if not options.prompt.strip():
        raise ValueError("--prompt is empty; write what to draw")
    return [Prompt(options.prompt)]


def chat(options: ChatOptions, world_size: int, terminal: Terminal) -> str:
    """Answer a file of questions, or somebody at a terminal; every rank calls this.

    Returns:
        A line for the user.

    Raises:
        ValueError: on every rank; one line with a remedy.
    """
    if (options.ask is None) != (options.answers is None):
        raise ValueError("--ask and --answers go together: questions, and the file to make")
    if options.ask is not None and options.image:
        raise ValueError("--image belongs to a conversation; name pictures in the file of --ask")
    for path in options.image:
        if not path.is_file():
            raise ValueError(f"--image {path} is not a file")
    questions = read_questions(options.ask) if options.ask else []
    area = options.image_area
    with open_session(options, world_size, False, options.system_prompt, area) as session:
        if not questions:
            converse(session, options, terminal)
            summary = ""
        else:
            summary = _answer_file(session, options, questions)
    leave_process_group()
    return summary


def _answer_file(session: Session, options: ChatOptions, questions: Sequence[AskedQuestion]) -> str:
    assert options.answers is not None
    settings = {
        **describe_model(session),
        **{field.name: getattr(options, field.name) for field in fields(AnsweringOptions)},
        "image_area": options.image_area,
        "seed": options.seed,
    }
    file = AnswersFile(options.answers, questions, settings, options.batch_size)
    on_first_rank(session, partial(check_questions, session, questions))
    on_first_rank(session, file.open)
    start = time.perf_counter()
    answered = answer_all(session, questions, options, options.seed, file)
    seconds = time.perf_counter() - start
    on_first_rank(session, file.finish)
    rate = f"{answered / seconds:.2g} questions/s" if answered else "all were there"
    return f"{answered} of {len(questions)} questions answered, {rate}: {options.answers}"


def describe_model(session: Session) -> dict[str, object]:
    """Return what made a result, as plain values."""
    images = session.images.name if session.images else None
    return {
        "checkpoint": str(session.checkpoint),
        "iteration": session.iteration,
        "model": session.config.model.model,
        "bf16": session.config.training.bf16,
        "image_tokenizer": images,
    }


def on_first_rank(session: Session, action: Callable[[], object]) -> None:
    """Run ``action`` on rank 0; if it fails there, every rank raises."""
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as caught:
            error = ValueError(f"cannot be written: {caught}")
        except ValueError as caught:
            error = caught
    broadcast_failure(error, session.parallel.control)
