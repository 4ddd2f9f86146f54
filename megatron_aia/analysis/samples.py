"""What a run has drawn and answered while it trained, in its folder.

::

    samples.jsonl               a line each
    samples/0000100/00.png      of the first line of --sample-prompts after step 100
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_aia.runtime.atomic import write_file

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLES_FILE = "samples.jsonl"
SAMPLES_FOLDER = "samples"


@dataclass(frozen=True)
class ShownSample:
    """One line of --sample-prompts, and what the model made of it."""

    number: int
    """Of the line, from 0."""
    asked: str
    """The prompt or the question."""
    picture: "Image | None" = None
    """Drawn; None of a question."""
    answer: str | None = None
    looked_at: str | None = None
    """File of the picture of a question."""


def write_samples(folder: Path, iteration: int, samples: Sequence[ShownSample]) -> None:
    """Write the samples after a step; a step that is done again replaces its pictures."""
    place = folder / SAMPLES_FOLDER / f"{iteration:07d}"
    place.mkdir(parents=True, exist_ok=True)
    lines = []
    for sample in samples:
        line: dict[str, object] = {"iteration": iteration, "number": sample.number}
        if sample.picture is not None:
            path = place / f"{sample.number:02d}.png"
            write_file(path, partial(sample.picture.save, format="PNG"))
            line |= {"prompt": sample.asked, "picture": str(path.relative_to(folder))}
        else:
            line |= {"question": sample.asked, "image": sample.looked_at, "answer": sample.answer}
        lines.append(json.dumps(line, ensure_ascii=False))
    with (folder / SAMPLES_FILE).open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
