"""GenEval: the folder that its scorer walks, and the lines that it writes. No torch.

::

    images/00007/metadata.jsonl        line 7 of evaluation_metadata.jsonl, untouched
    images/00007/samples/00000.png     to 00003.png
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_aia.evaluation.result import Metric, judged_metric
from megatron_aia.generation.prompts import check_text, read_json_lines, read_text
from megatron_aia.runtime.atomic import write_file, write_text
from megatron_aia.runtime.optional import import_optional

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = 4
"""Of each prompt, as published."""


class GenEval:
    """The benchmark in one folder.

    Args:
        data: evaluation_metadata.jsonl of the user's copy.
        folder: for pictures and results.

    Raises:
        ValueError: the file is none of GenEval's.
    """

    column, pictures = "GenEval", PICTURES

    def __init__(self, data: Path, folder: Path) -> None:
        self._folder = folder
        self.prompts = []
        for place, document in read_json_lines(data):
            if "tag" not in document:
                raise ValueError(f"{place}: no 'tag'; give GenEval's evaluation_metadata.jsonl")
            self.prompts.append(check_text(place, document, "prompt"))
        if not self.prompts:
            raise ValueError(f"{data} has no prompt; give GenEval's evaluation_metadata.jsonl")
        self._lines = [line for line in read_text(data).splitlines() if line.strip()]
        self.images = folder / "images"
        self.results = folder / "results.jsonl"
        """What the scorer writes."""

    @property
    def total(self) -> int:
        """Pictures of the whole benchmark."""
        return len(self.prompts) * self.pictures

    def side(self) -> int:
        """Return the side of a picture in pixels."""
        image_module = import_optional("PIL.Image", "hf")
        with image_module.open(self._path(0, 0)) as picture:
            return int(picture.width)

    def prepare(self, count: int) -> None:
        """Write what stands beside the pictures of the first ``count`` prompts."""
        for number in range(count):
            place = self.images / f"{number:05d}"
            (place / "samples").mkdir(parents=True, exist_ok=True)
            write_text(place / "metadata.jsonl", self._lines[number] + "\n")

    def _path(self, prompt: int, number: int) -> Path:
        return self.images / f"{prompt:05d}" / "samples" / f"{number:05d}.png"

    def is_done(self, prompt: int, number: int) -> bool:
        """Return whether a picture is there."""
        return self._path(prompt, number).is_file()

    def save(self, prompt: int, number: int, image: "Image") -> None:
        """Write a picture."""
        write_file(self._path(prompt, number), lambda file: image.save(file, "PNG"))

    def finish(self, count: int) -> None:
        """Do nothing: the scorer takes pictures as they are."""

    def read(self, judge: str) -> Metric:
        """Read the scorer's lines: the mean over tags of the mean over pictures.

        Raises:
            ValueError: the file holds something else.
        """
        correct: dict[str, list[bool]] = defaultdict(list)
        for place, document in read_json_lines(self.results):
            found = document.get("correct")
            if not isinstance(found, bool):
                raise ValueError(f"{place}: 'correct' must be true or false; it is {found!r}")
            correct[check_text(place, document, "tag")].append(found)
        parts = {tag: sum(values) / len(values) for tag, values in correct.items()}
        judged = sum(map(len, correct.values()))
        of = self.total
        if judged > of:
            raise ValueError(f"{self.results} has {judged} pictures, and GenEval {of}")
        tags = {json.loads(line)["tag"] for line in self._lines}
        missing = tags - parts.keys()
        value = sum(parts.values()) / len(parts) if parts else 0.0
        metric = judged_metric(self.column, value, judged, of, judge, parts)
        assert metric.status != "measured" or not missing
        return metric
