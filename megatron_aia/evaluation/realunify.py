"""RealUnify, its tasks where understanding helps to draw (UEG), step by step. No torch.

The model first answers ``new_prompt`` in words, then draws its own answer. The file is the user's
own copy: RealUnify allows no other use than academic research, and no redistribution.

::

    answers.jsonl     the words
    images/00007.png  the pictures
    UEG_step.json     the user's file with response and generated_image in every item
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_aia.evaluation.result import Metric, judged_metric, not_judged
from megatron_aia.generation.prompts import check_text, read_text
from megatron_aia.generation.questions import AskedQuestion
from megatron_aia.runtime.atomic import write_file, write_text
from megatron_aia.runtime.optional import import_optional

if TYPE_CHECKING:
    from PIL.Image import Image

OUTPUT_FILE = "UEG_step.json"


class RealUnify:
    """The benchmark in one folder.

    Args:
        data: UEG_step.json of the user's copy.
        folder: for answers, pictures and results.
        limit: items; None: all.

    Raises:
        ValueError: the file holds something else.
    """

    column = "RealUnify-UEG"

    def __init__(self, data: Path, folder: Path, limit: int | None) -> None:
        items = _read_items(data)
        for number, item in enumerate(items):
            place = f"{data}, item {number}"
            if "edit_prompt" in item:
                raise ValueError(f"{place}: its picture is edited, which no model here does")
            check_text(place, item, "new_prompt")
            check_text(place, item, "task_type")
        self.total = len(items)
        self._items = items[:limit]
        self._folder = folder
        self.images = folder / "images"
        self.answers = folder / "answers.jsonl"
        self.results = folder / "judged.json"

    @property
    def questions(self) -> list[AskedQuestion]:
        """The first step."""
        return [
            AskedQuestion(f"{number:05d}", item["new_prompt"])
            for number, item in enumerate(self._items)
        ]

    def read_responses(self) -> list[str]:
        """Return the model's words, which it draws in the second step.

        Raises:
            ValueError: the file of answers is not that of the questions.
        """
        lines = [json.loads(line) for line in read_text(self.answers).splitlines()]
        if [line["key"] for line in lines] != [question.key for question in self.questions]:
            raise ValueError(f"{self.answers} holds other answers than were asked for; remove it")
        return [str(line["answer"]) for line in lines]

    def prepare(self) -> None:
        """Make the folder."""
        self.images.mkdir(exist_ok=True)

    def _path(self, item: int) -> Path:
        return self.images / f"{item:05d}.png"

    def is_done(self, item: int) -> bool:
        """Return whether a picture is there."""
        return self._path(item).is_file()

    def save(self, item: int, image: "Image") -> None:
        """Write a picture."""
        write_file(self._path(item), lambda file: image.save(file, "PNG"))

    def side(self) -> int:
        """Return the width of a picture in pixels."""
        image_module = import_optional("PIL.Image", "hf")
        with image_module.open(self._path(0)) as picture:
            return int(picture.width)

    def finish(self) -> None:
        """Write the user's file with both steps in it."""
        rows = [
            {**item, "response": response, "generated_image": str(self._path(number).absolute())}
            for number, (item, response) in enumerate(
                zip(self._items, self.read_responses(), strict=True)
            )
        ]
        text = json.dumps(rows, indent=4, ensure_ascii=False)
        write_text(self._folder / OUTPUT_FILE, text + "\n")

    def read(self, judge: str) -> Metric:
        """Read a judged copy, whose items have ``score`` 1 if all questions were answered right.

        Raises:
            ValueError: it holds other items.
        """
        judged = [item for item in _read_items(self.results) if item.get("score") in (0, 1)]
        if len(judged) > self.total:
            raise ValueError(f"{self.results} has more items than {self.total}")
        if not judged:
            return not_judged(self.column, self.total)
        by_task: dict[str, list[int]] = {}
        for item in judged:
            by_task.setdefault(str(item.get("task_type")), []).append(int(item["score"]))
        parts = {task: 100 * sum(scores) / len(scores) for task, scores in by_task.items()}
        value = 100 * sum(item["score"] for item in judged) / len(judged)
        return judged_metric(self.column, value, len(judged), self.total, judge, parts)


def _read_items(path: Path) -> list[dict[str, Any]]:
    try:
        items = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); give RealUnify's UEG_step.json") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{path} is no list of objects; give RealUnify's UEG_step.json")
    if not items:
        raise ValueError(f"{path} has no item")
    return items
