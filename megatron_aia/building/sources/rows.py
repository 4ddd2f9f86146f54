"""Field names of public data sets: every row becomes the record that ``convert_record`` reads.

====================================  ==============================================  ==========
fields                                data sets                                       task
====================================  ==============================================  ==========
``conversations``, ``image(s)``       LLaVA, LLaVA-NeXT, MAmmoTH-VL, AIA, ORION       any
``input_prompt``, ``output_image``    ShareGPT-4o-Image; with ``input_image``: edits  gen., mixed
``cap``, ``path``                     Open-Sora-Plan, of whose captions the first     generation
``texts``, ``images``                 lists of codes that were made before            generation
``txt`` or ``caption``, ``image``     BLIP3o and other pairs of picture and caption   generation
or ``jpg``, ``jpeg``, ``png``,
``webp``
====================================  ==============================================  ==========

A row of other fields stays as it is, and does not fit.
"""

from collections.abc import Callable
from typing import Any

from megatron_aia.building.sources.base import Row
from megatron_aia.shards.raw_sample import IMAGE_TAG

PICTURE_FIELDS = ("image", "jpg", "jpeg", "png", "webp")
_CAPTION_FIELDS = ("txt", "caption")
_TURN = ("from", "value")


def to_record(row: Row) -> Row:
    """Return a row as ``{"id", "image", "conversations", "source", "license"}``.

    Values are not checked here; what does not fit is left to ``convert_record``.
    """
    for fields, convert in _FORMS:
        if all(field in row for field in fields):
            return convert(row)
    caption = next((row[field] for field in _CAPTION_FIELDS if field in row), None)
    picture = next((row[field] for field in PICTURE_FIELDS if field in row), None)
    return row if caption is None or picture is None else _drawing(row, caption, [picture])


def _conversation(row: Row) -> Row:
    """Turn a dictionary of lists, as ``datasets`` stores some lists of turns, into a list."""
    turns = row["conversations"]
    if not isinstance(turns, dict) or not all(isinstance(turns.get(key), list) for key in _TURN):
        return row
    pairs = zip(*(turns[key] for key in _TURN), strict=False)
    return {**row, "conversations": [dict(zip(_TURN, pair, strict=True)) for pair in pairs]}


def _open_sora_plan(row: Row) -> Row:
    captions = row["cap"] if isinstance(row["cap"], list) else [row["cap"]]
    return _drawing(row, captions[0] if captions else None, [row["path"]])


def _sharegpt_4o(row: Row) -> Row:
    given = row.get("input_image") or []
    given = given if isinstance(given, list) else [given]
    return _drawing(row, row["input_prompt"], [*given, row["output_image"]])


def _images_and_texts(row: Row) -> Row:
    return _drawing(row, row["texts"], [row["images"]])


def _drawing(row: Row, prompt: Any, images: list[Any]) -> Row:
    """Return the record of a prompt, perhaps with images to look at, and the image to draw."""
    if isinstance(prompt, str):
        prompt = IMAGE_TAG * (len(images) - 1) + prompt
    record = {
        "image": images,
        "conversations": [
            {"from": "human", "value": prompt},
            {"from": "gpt", "value": IMAGE_TAG},
        ],
    }
    names = {"id": ("id", "__key__", "name"), "source": ("source", "data_source"), "license": ()}
    for field, others in names.items():
        found = [row[name] for name in (field, *others) if row.get(name) is not None]
        record |= {field: found[0]} if found else {}
    return record


_FORMS: tuple[tuple[tuple[str, ...], Callable[[Row], Row]], ...] = (
    (("conversations",), _conversation),
    (("input_prompt", "output_image"), _sharegpt_4o),
    (("cap", "path"), _open_sora_plan),
    (("texts", "images"), _images_and_texts),
)
"""The first line whose fields are all there decides."""
