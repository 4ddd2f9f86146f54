"""Conversation records (LLaVA and its relatives) to samples.

A record is ``{"id", "image": image or list of images, "conversations": [{"from", "value"}, ...]}``.
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

import re
from dataclasses import dataclass
from typing import Any, Union

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.shards.raw_sample import IMAGE_TAG, Turn

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
RecordImage = Union[str, bytes, np.ndarray]
"""A path, the contents of a picture file, or integer codes ``[h, w]``."""
_ANY_TAG = re.compile(
    r"<\|?(?:image|img|vision|picture)[\w-]*\|?>|<im_patch>|\[(?:IMG|IMAGE)\]", re.IGNORECASE
)
"""As programs write where an image stands; in the text it would be read as words."""
_TAGS_AT_AN_END = re.compile(rf"^(?:\s*{IMAGE_TAG}\s*)+|(?:\s*{IMAGE_TAG}\s*)+$")


class RecordError(ValueError):
    """A record that cannot become a sample.

    Attributes:
        record_id: name of the record.
        reason: the kind of failure, the same for all records that fail like this.
        details: what differs between them.
    """

    def __init__(self, record_id: str, reason: str, details: str = "") -> None:
        super().__init__(f"record {record_id}: {reason}{details and ': '}{details}")
        self.record_id = record_id
        self.reason = reason
        self.details = details


@dataclass(frozen=True)
class Record:
    """A record in its one stored form."""

    id: str
    task: Task
    turns: tuple[Turn, ...]
    """Alternating human and gpt; one tag an image, in the turn where the image stands."""
    images: tuple[RecordImage, ...]
    """As the record gives them, in the order of the tags."""
    source: str = ""
    license: str = ""

    @property
    def drawn(self) -> tuple[bool, ...]:
        """Whether the model draws the image, for each tag in order."""
        return tuple(
            turn.role == "gpt" for turn in self.turns for _ in range(turn.text.count(IMAGE_TAG))
        )


def convert_record(number: int, record: dict[str, Any]) -> Record:
    """Convert one record; see the module for the rule.

    White space is removed at both ends of a turn and around the tags there; every other character
    stays.

    Raises:
        RecordError: the record does not fit the rule.
    """
    record_id = str(number if record.get("id") is None else record["id"])
    images = _images(record_id, record)
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
    origin = str(record.get("source") or record.get("data_source") or "")
    terms = str(record.get("license") or "")
    if not _is_unicode(record_id, origin, terms, *(turn.text for turn in turns)):
        raise RecordError(ascii(record_id), "a text is no valid Unicode")
    return Record(record_id, _task(turns), turns, images, origin, terms)


def _is_unicode(*texts: str) -> bool:
    """Tell whether texts can be written; JSON may spell half of a surrogate pair."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _images(record_id: str, record: dict[str, Any]) -> tuple[RecordImage, ...]:
    found: Any = [record[name] for name in ("image", "images") if not is_empty(record.get(name))]
    images = found[0] if found else []
    images = images if isinstance(images, list) else [images]
    unpacked = tuple(_unpack(image) for image in images)
    if not all(isinstance(image, (str, bytes, np.ndarray)) for image in unpacked):
        raise RecordError(record_id, "image is neither a path nor a picture, nor a list of them")
    return unpacked


def is_empty(value: Any) -> bool:
    """Return whether a field of a record holds nothing."""
    return value is None or (isinstance(value, (str, bytes, list, dict)) and not value)


def _unpack(image: Any) -> Any:
    """Return the picture, or else the path, of the form in which ``datasets`` stores an image."""
    if not isinstance(image, dict):
        return image
    return image.get("bytes") or image.get("path")


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
        foreign = next((tag for tag in _ANY_TAG.findall(text) if tag != IMAGE_TAG), None)
        if foreign is not None:
            said = f"{foreign}; write {IMAGE_TAG}"
            raise RecordError(record_id, "a text holds an image tag of another program", said)
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
