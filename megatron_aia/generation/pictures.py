"""Many pictures: shared by replicas, drawn in batches, written one by one, begun again where a
command was stopped.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from megatron_aia.generation.drawing import draw_pictures
from megatron_aia.generation.picture_settings import PictureSettings, write_drawing
from megatron_aia.generation.prompts import Prompt
from megatron_aia.generation.sampling import row_key
from megatron_aia.generation.session import Session
from megatron_aia.models.inference import Drawing
from megatron_aia.runtime.parallel import broadcast_failure

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class PictureRequest:
    """A picture that is asked for."""

    asked: Prompt
    number: int = 0
    """Among the pictures of this prompt."""


@dataclass(frozen=True)
class DrawnPicture:
    """A picture that was drawn."""

    codes: np.ndarray
    """int64 ``[rows, columns]``."""
    image: "Image"


def write_drawings(
    session: Session, settings: PictureSettings, requests: Sequence[PictureRequest]
) -> list[Drawing]:
    """Write all requests as tokens.

    Raises:
        ValueError: a prompt and its picture do not fit the context, or a ratio is unknown.
    """
    context = session.config.model.max_position_embeddings
    return [write_drawing(session.inference, settings, r.asked, context) for r in requests]


def draw_requests(
    session: Session,
    settings: PictureSettings,
    requests: Sequence[PictureRequest],
    drawings: Sequence[Drawing],
    is_done: Callable[[int], bool],
    save: Callable[[int, DrawnPicture], None],
    batch_size: int,
) -> int:
    """Draw what is not done yet; every rank calls this.

    Batches are the same whatever is done, and one is drawn as a whole: so what stands in a batch
    beside a picture does not depend on where an earlier command was stopped.

    Args:
        session: the model.
        settings: of all pictures.
        requests: all pictures, done ones too.
        drawings: of all of them, by ``write_drawings``.
        is_done: whether a request is; asked on rank 0.
        save: writes a picture, by the number of its request; called on one rank of a replica.
        batch_size: pictures that a replica draws at a time.

    Returns:
        How many pictures were drawn.

    Raises:
        ValueError: on every rank, if a picture cannot be written.
    """
    batches = [range(i, i + batch_size) for i in range(0, len(requests), batch_size)]
    batches = [range(b.start, min(b.stop, len(requests))) for b in batches]
    todo = _agree([i for i, b in enumerate(batches) if not all(map(is_done, b))], session)
    total = sum(len(batches[i]) for i in todo)
    with tqdm(total=total, unit="picture", disable=None if dist.get_rank() == 0 else True) as bar:
        for start in range(0, len(todo), session.replicas):
            now = todo[start : start + session.replicas]
            error: Exception | None = None
            if session.replica < len(now):
                numbers = batches[now[session.replica]]
                keys = [_key(settings, requests[i]) for i in numbers]
                ids = draw_pictures(
                    *session.model, [drawings[i] for i in numbers], keys, settings.guidance
                )
                if session.speaks_for_replica:
                    error = _save_all(session, [drawings[i] for i in numbers], ids, numbers, save)
            broadcast_failure(error, session.parallel.control)
            bar.update(sum(len(batches[i]) for i in now))
    return total


def _key(settings: PictureSettings, request: PictureRequest) -> int:
    return row_key(settings.seed, request.number, request.asked.prompt)


def _save_all(
    session: Session,
    drawings: Sequence[Drawing],
    ids: Sequence[np.ndarray],
    numbers: Sequence[int],
    save: Callable[[int, DrawnPicture], None],
) -> Exception | None:
    """Save a batch; return what went wrong, for the ranks that wait for this one."""
    assert session.images is not None
    try:
        for number, drawing, row in zip(numbers, drawings, ids, strict=True):
            codes = session.inference.codes(drawing, row)
            save(number, DrawnPicture(codes, session.images.decode(codes)))
    except OSError as caught:
        return ValueError(f"a picture cannot be written: {caught}")
    except ValueError as caught:
        return caught
    return None


def _agree(todo: list[int], session: Session) -> list[int]:
    """Return what rank 0 has to do: others may see a file later."""
    found = [todo]
    dist.broadcast_object_list(found, src=0, group=session.parallel.control)
    return found[0]


def png_bytes(image: "Image") -> bytes:
    """Return a picture as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
