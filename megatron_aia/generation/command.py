"""The command that draws, behind its flags."""

import time
from collections.abc import Callable

import torch.distributed as dist

from megatron_aia.generation.options import GenerateOptions
from megatron_aia.generation.picture_folder import PictureFolder
from megatron_aia.generation.pictures import (
    PictureRequest,
    PictureSettings,
    draw_requests,
    write_drawings,
)
from megatron_aia.generation.prompts import Prompt, read_prompts
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
            PictureRequest(p.prompt, number, p.negative_prompt, p.ratio)
            for p in prompts
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
