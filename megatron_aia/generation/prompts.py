"""What is asked for: a file of prompts, read and checked as a whole. No torch."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KEYS = ("prompt", "negative_prompt", "ratio")


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt file; what is None is as the command says."""

    prompt: str
    negative_prompt: str | None = None
    ratio: str | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts: one a line, or JSON lines (*.jsonl) with ``prompt`` and, if they differ from
    the command's, ``negative_prompt`` and ``ratio``.

    Raises:
        ValueError: the file cannot be read, has no prompt, or a line holds something else.
    """
    if path.suffix == ".jsonl":
        prompts = [_prompt(place, document) for place, document in read_json_lines(path)]
    else:
        lines = read_text(path).splitlines()
        prompts = [Prompt(line.strip()) for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompt; write one a line")
    return prompts


def _prompt(place: str, document: Mapping[str, Any]) -> Prompt:
    unknown = sorted(document.keys() - set(_KEYS))
    if unknown:
        raise ValueError(f"{place}: {unknown[0]!r} is not known; a line has {', '.join(_KEYS)}")
    return Prompt(**check_texts(place, document, ("prompt",)))


def check_texts(place: str, document: Mapping[str, Any], needed: tuple[str, ...]) -> dict[str, str]:
    """Return the values of a line, which must all be texts.

    Raises:
        ValueError: a value is no text, or a needed one is missing or blank; ``place`` says where.
    """
    for name in needed:
        if not isinstance(document.get(name), str) or not document[name].strip():
            raise ValueError(f"{place}: {name!r} must be a text; it is {document.get(name)!r}")
    for name, value in document.items():
        if not isinstance(value, str):
            raise ValueError(f"{place}: {name!r} must be a text; it is {value!r}")
    return dict(document)


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each line stands, as errors name it, and its object; blank lines are passed over.

    Raises:
        ValueError: the file cannot be read, or a line is no object.
    """
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            document = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place}: no JSON ({error})") from None
        if not isinstance(document, dict):
            raise ValueError(f"{place}: not an object but {type(document).__name__}")
        yield place, document


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        ValueError: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
