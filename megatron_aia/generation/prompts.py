"""What is asked for: a file of prompts, read and checked as a whole. No torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt file; what is None is as the command says."""

    prompt: str
    negative_prompt: str | None = None
    prompt_suffix: str | None = None
    ratio: str | None = None
    image_area: int | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts: one a line, or JSON lines (*.jsonl) with the fields of ``Prompt``.

    Raises:
        ValueError: the file cannot be read, has no prompt, or a line holds something else.
    """
    if path.suffix == ".jsonl":
        prompts = [read_prompt(place, document) for place, document in read_json_lines(path)]
    else:
        lines = read_text(path).splitlines()
        prompts = [Prompt(line.strip()) for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path} has no prompt; write one a line")
    return prompts


def read_prompt(place: str, document: Mapping[str, Any]) -> Prompt:
    """Return the prompt of a line.

    Raises:
        ValueError: it has other names, or a value of another type; ``place`` says where.
    """
    check_names(place, document, [field.name for field in fields(Prompt)])
    for name, value in document.items():
        if name == "image_area":
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{place}: {name!r} must be a number of pixels; it is {value!r}")
        elif not isinstance(value, str):
            raise ValueError(f"{place}: {name!r} must be a text; it is {value!r}")
    check_text(place, document, "prompt")
    return Prompt(**document)


def check_names(place: str, document: Mapping[str, Any], names: Sequence[str]) -> None:
    """Check that an object has no other names than these.

    Raises:
        ValueError: it has; ``place`` says where.
    """
    unknown = sorted(document.keys() - set(names))
    if unknown:
        raise ValueError(f"{place}: {unknown[0]!r} is not known; a line has {', '.join(names)}")


def check_text(place: str, document: Mapping[str, Any], name: str) -> str:
    """Return a text of an object that must not be blank.

    Raises:
        ValueError: it is missing, blank or no text; ``place`` says where.
    """
    value = document.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {name!r} must be a text; it is {value!r}")
    return value


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
