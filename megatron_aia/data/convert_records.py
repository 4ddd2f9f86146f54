"""Conversation records (LLaVA and its relatives) to samples.

A record is ``{"id", "image": path or list of paths, "conversations": [{"from", "value"}, ...]}``.
One rule reads them all:

=====================================  ==================================================
an image tag in a gpt turn             the model draws that image
an image tag in a human turn           the model sees that image
images, but no tag at all              the model sees them, before the first question
no image                               text
=====================================  ==================================================

One prompt answered by one image and nothing else is a *generation* sample, a record whose images
are all seen is *understanding*, and everything else that draws is *mixed*.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_aia.aia.roles import Task
from megatron_aia.data.sample import IMAGE_TAG, Turn

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_TAGS_AT_AN_END = re.compile(rf"^(?:\s*{IMAGE_TAG}\s*)+|(?:\s*{IMAGE_TAG}\s*)+$")


class RecordError(ValueError):
    """A record that cannot become a sample.

    Attributes:
        reason: the kind of failure, the same for all records that fail like this.
    """

    def __init__(self, record_id: str, reason: str, details: str = "") -> None:
        super().__init__(f"record {record_id}: {reason}{details and ': '}{details}")
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """A record in its one stored form."""

    id: str
    task: Task
    turns: tuple[Turn, ...]
    """Alternating human and gpt; one tag an image, in the turn where the image stands."""
    images: tuple[str, ...]
    """Paths as the record gives them, in the order of the tags."""
    source: str = ""
    license: str = ""

    @property
    def drawn(self) -> tuple[bool, ...]:
        """Whether the model draws the image, for each tag in order."""
        return tuple(
            turn.role == "gpt" for turn in self.turns for _ in range(turn.text.count(IMAGE_TAG))
        )


def read_records(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 0, record) of a JSON list, or of JSON lines in a ``*.jsonl`` file.

    Raises:
        ValueError: the file cannot be read, or holds something else than JSON objects.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".jsonl":
                records: Any = (json.loads(line) for line in file if line.strip())
            else:
                records = json.load(file)
                if not isinstance(records, list):
                    raise ValueError("it is no list of records; JSON lines must be named *.jsonl")
            for number, record in enumerate(records):
                if not isinstance(record, dict):
                    raise ValueError(f"record number {number} is no JSON object")
                yield number, record
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read records from {path}: {error}") from error


def convert_record(number: int, record: dict[str, Any]) -> Record:
    """Convert one record; see the module for the rule.

    White space is removed at both ends of a turn and around the tags there; every other character
    stays.

    Raises:
        RecordError: the record does not fit the rule.
    """
    record_id = str(record.get("id", number))
    images = _image_paths(record_id, record)
    turns = _turns(record_id, record)
    num_tags = sum(turn.text.count(IMAGE_TAG) for turn in turns)
    if images and num_tags == 0:
        first = Turn("human", IMAGE_TAG * len(images) + turns[0].text)
        turns = (first, *turns[1:])
    elif num_tags != len(images):
        found = f"{num_tags} tags, {len(images)} images"
        raise RecordError(record_id, "image tags do not match images", found)
    if not all(turn.text for turn in turns):
        raise RecordError(record_id, "a turn is empty")
    return Record(
        id=record_id,
        task=_task(turns),
        turns=turns,
        images=images,
        source=str(record.get("source") or record.get("data_source") or ""),
        license=str(record.get("license") or ""),
    )


def _image_paths(record_id: str, record: dict[str, Any]) -> tuple[str, ...]:
    paths = record.get("image") or record.get("images") or []
    if isinstance(paths, str):
        paths = [paths]
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise RecordError(record_id, "image is neither a path nor a list of paths")
    return tuple(paths)


def _turns(record_id: str, record: dict[str, Any]) -> tuple[Turn, ...]:
    conversations = record.get("conversations")
    if not isinstance(conversations, list) or not conversations:
        raise RecordError(record_id, "no conversations")
    turns = []
    for turn in conversations:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        text = turn.get("value") if isinstance(turn, dict) else None
        if speaker not in _SPEAKERS or not isinstance(text, str):
            raise RecordError(record_id, "a turn is not from human or gpt", repr(speaker))
        turns.append(Turn(_SPEAKERS[speaker], _trim(text)))
    roles = [turn.role for turn in turns]
    if roles != ["human", "gpt"] * (len(roles) // 2):
        raise RecordError(record_id, "turns do not go human, gpt, human, gpt", " ".join(roles))
    return tuple(turns)


def _trim(text: str) -> str:
    """Remove white space at both ends, and around the tags that stand there."""
    return _TAGS_AT_AN_END.sub(
        lambda match: IMAGE_TAG * match.group().count(IMAGE_TAG), text.strip()
    )


def _task(turns: tuple[Turn, ...]) -> Task:
    if any(IMAGE_TAG in turn.text for turn in turns[1::2]):
        is_one_image = len(turns) == 2 and turns[1].text == IMAGE_TAG
        return Task.GENERATION if is_one_image and IMAGE_TAG not in turns[0].text else Task.MIXED
    if any(IMAGE_TAG in turn.text for turn in turns):
        return Task.UNDERSTANDING
    return Task.TEXT
