"""Answers to the questions of a folder."""

import json
from pathlib import Path
from typing import Any


def read_answers(folder: Path, path: Path) -> dict[str, str]:
    """Return the answers by key.

    Args:
        folder: of requests.jsonl.
        path: of the answers, one JSON object a line, with "key" and "answer".

    Raises:
        ValueError: a line is no answer, stands there twice, or belongs to no question; a question
            has none.
    """
    asked = {line["key"] for _, line in _objects(folder / "requests.jsonl")}
    answers: dict[str, str] = {}
    for number, line in _objects(path):
        for name in ("key", "answer"):
            if not isinstance(line.get(name), str):
                raise ValueError(f"{path}, line {number}: {name!r} is missing, or no text")
        if line["key"] in answers:
            raise ValueError(f"{path}, line {number}: the key {line['key']!r} stands there twice")
        answers[line["key"]] = line["answer"]
    for what, keys in (
        ("has no answer to", asked - answers.keys()),
        ("answers what was not asked:", answers.keys() - asked),
    ):
        if keys:
            raise ValueError(f"{path} {what} {min(keys)!r} ({len(keys)} of {len(asked)})")
    return answers


def _objects(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the numbered lines of a file of JSON objects."""
    if not path.is_file():
        raise ValueError(f"{path} is not there")
    objects = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
        if not isinstance(document, dict):
            raise ValueError(f"{path}, line {number}: no JSON object")
        objects.append((number, document))
    return objects
