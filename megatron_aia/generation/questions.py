"""What is asked: a file of questions with pictures, read and checked as a whole. No torch.

One JSON object a line, as the plug-in of lmms-eval writes them::

    {"key": "mmmu_val/validation/17/0", "text": "...", "images": ["images/a.png"],
     "options": {"max_new_tokens": 16, "until": ["\\n"], "do_sample": false}}

Pictures are paths from the folder of the file. They stand where ``<image>`` stands in the text,
or before it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from megatron_aia.generation.prompts import check_names, check_text, read_json_lines
from megatron_aia.shards.pictures import decode_picture, read_pixel_size
from megatron_aia.shards.raw_sample import IMAGE_TAG, CorruptSampleError

_KEYS = ("key", "text", "images", "options")
_WITHOUT_EFFECT = ("image_aspect_ratio", "use_cache")
"""Options that tasks of lmms-eval pass on to models which cut pictures, or keep no keys."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class FilePicture:
    """The ``Picture`` in a file of its own."""

    path: Path

    def decode(self) -> np.ndarray:
        """See ``Picture``."""
        return self._read(decode_picture)

    def pixel_size(self) -> tuple[int, int]:
        """See ``Picture``."""
        return self._read(read_pixel_size)

    def _read(self, look: Callable[[bytes], _T]) -> _T:
        try:
            return look(self.path.read_bytes())
        except CorruptSampleError as error:
            raise CorruptSampleError(f"{self.path} {error}") from None
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error}") from None


@dataclass(frozen=True)
class QuestionOptions:
    """What a question says of its answer; what is None is as the command says."""

    max_new_tokens: int | None = None
    until: tuple[str, ...] = ()
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


@dataclass(frozen=True)
class AskedQuestion:
    """One line."""

    key: str
    text: str
    """With a tag for each picture."""
    pictures: tuple[FilePicture, ...] = ()
    options: QuestionOptions = field(default_factory=QuestionOptions)


def with_tags(text: str, num_pictures: int, place: str) -> str:
    """Return a text with one tag a picture; a text without tags gets them in front.

    Raises:
        ValueError: it has tags, but not so many.
    """
    tags = text.count(IMAGE_TAG)
    if tags not in (0, num_pictures):
        raise ValueError(f"{place}: {tags} {IMAGE_TAG} tags and {num_pictures} pictures")
    return text if tags else IMAGE_TAG * num_pictures + text


def read_questions(path: Path) -> list[AskedQuestion]:
    """Read a file of questions.

    Raises:
        ValueError: it cannot be read, has no question, a line holds something else, a key twice,
            or a picture is not there.
    """
    questions: dict[str, AskedQuestion] = {}
    for place, document in read_json_lines(path):
        question = _question(place, document, path.parent)
        if question.key in questions:
            raise ValueError(f"{place}: the key {question.key!r} stands there twice")
        questions[question.key] = question
    if not questions:
        raise ValueError(f"{path} has no question; write one JSON object a line")
    return list(questions.values())


def _question(place: str, document: Mapping[str, Any], root: Path) -> AskedQuestion:
    check_names(place, document, _KEYS)
    for name in ("key", "text"):
        check_text(place, document, name)
    images = document.get("images", [])
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        raise ValueError(f"{place}: 'images' must be a list of paths; it is {images!r}")
    for name in images:
        if not (root / name).is_file():
            raise ValueError(f"{place}: the picture {root / name} is not there")
    return AskedQuestion(
        document["key"],
        with_tags(document["text"], len(images), place),
        tuple(FilePicture(root / name) for name in images),
        _options(place, document.get("options") or {}),
    )


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (lambda v: _is(v, int) and v >= 1, "a whole number of 1 or more"),
    "until": (lambda v: _is(v, list) and all(_is(x, str) and x for x in v), "a list of texts"),
    "do_sample": (lambda v: isinstance(v, bool), "true or false"),
    "temperature": (lambda v: _is(v, int, float) and v >= 0, "a number of 0 or more"),
    "top_p": (lambda v: _is(v, int, float) and 0 < v <= 1, "above 0 and at most 1"),
    "top_k": (lambda v: _is(v, int) and v >= 0, "a whole number of 0 or more"),
    "num_beams": (lambda v: v == 1, "1"),
}


def _is(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _options(place: str, options: Any) -> QuestionOptions:
    if not isinstance(options, dict):
        raise ValueError(f"{place}: 'options' must be an object; it is {options!r}")
    found: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or name in _WITHOUT_EFFECT:
            continue
        if name not in _CHECKS:
            raise ValueError(
                f"{place}: the option {name!r} is not known; there are {', '.join(_CHECKS)}"
            )
        is_fine, expected = _CHECKS[name]
        if not is_fine(value):
            raise ValueError(f"{place}: the option {name!r} must be {expected}; it is {value!r}")
        found[name] = tuple(value) if name == "until" else value
    found.pop("num_beams", None)
    return QuestionOptions(**found)
