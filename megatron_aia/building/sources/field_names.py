"""Field names of public data sets: every record becomes the one that ``convert_record`` reads.

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

A record of other fields stays as it is, and does not fit. Neither does one with a video or a sound,
or with a picture in a field that is not read: it would become another sample.
"""

from collections.abc import Callable
from typing import Any

from megatron_aia.building.convert_records import RecordError, is_empty
from megatron_aia.building.sources.base import RawRecord
from megatron_aia.shards.raw_sample import IMAGE_TAG

PICTURE_FIELDS = ("image", "jpg", "jpeg", "png", "webp")
CAPTION_FIELDS = ("txt", "caption")
_IMAGE_FIELDS = ("images", *PICTURE_FIELDS, "path", "input_image", "output_image")
_IMAGE_WORDS = ("image", "img", "picture", "photo", "pixel", *PICTURE_FIELDS)
_OTHER_MEDIA = ("video", "audio")
_TURN = ("from", "value")


def to_record(raw: RawRecord) -> RawRecord:
    """Return a raw record as ``{"id", "image", "conversations", "source", "license"}``.

    Values are not checked here; what does not fit is left to ``convert_record``.

    Raises:
        RecordError: it holds a video, a sound, or a picture that is not read.
    """
    _check_media(raw)
    for fields, convert in _FORMS:
        if all(field in raw for field in fields):
            return convert(raw)
    caption = next((raw[field] for field in CAPTION_FIELDS if field in raw), None)
    picture = next((raw[field] for field in PICTURE_FIELDS if field in raw), None)
    return raw if caption is None or picture is None else _drawing(raw, caption, [picture])


def _check_media(raw: RawRecord) -> None:
    full = [field for field, value in raw.items() if not is_empty(value)]
    reads_image = any(field in _IMAGE_FIELDS for field in full)
    for field in full:
        name = field.lower()
        is_image = any(word in name for word in _IMAGE_WORDS) and _may_be_picture(raw[field])
        if any(word in name for word in _OTHER_MEDIA) or (
            is_image and not reads_image and field not in _IMAGE_FIELDS
        ):
            record_id = str(raw.get("id", raw.get("__key__", "")))
            fields = ", ".join(_IMAGE_FIELDS)
            raise RecordError(
                record_id,
                f"the field {field} is not read",
                f"images stand in one of {fields}; rename it, or remove it",
            )


def _may_be_picture(value: Any) -> bool:
    """Tell pictures and paths from counts, sizes and flags."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, (str, bytes, dict))


def _conversation(raw: RawRecord) -> RawRecord:
    """Turn a dictionary of lists, as ``datasets`` stores some lists of turns, into a list."""
    turns = raw["conversations"]
    if not isinstance(turns, dict) or not all(isinstance(turns.get(key), list) for key in _TURN):
        return raw
    pairs = zip(*(turns[key] for key in _TURN), strict=False)
    return {**raw, "conversations": [dict(zip(_TURN, pair, strict=True)) for pair in pairs]}


def _open_sora_plan(raw: RawRecord) -> RawRecord:
    captions = raw["cap"] if isinstance(raw["cap"], list) else [raw["cap"]]
    return _drawing(raw, captions[0] if captions else None, [raw["path"]])


def _sharegpt_4o(raw: RawRecord) -> RawRecord:
    given = raw.get("input_image") or []
    given = given if isinstance(given, list) else [given]
    return _drawing(raw, raw["input_prompt"], [*given, raw["output_image"]])


def _images_and_texts(raw: RawRecord) -> RawRecord:
    return _drawing(raw, raw["texts"], [raw["images"]])


def _drawing(raw: RawRecord, prompt: Any, images: list[Any]) -> RawRecord:
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
        found = [raw[name] for name in (field, *others) if raw.get(name) is not None]
        record |= {field: found[0]} if found else {}
    return record


_FORMS: tuple[tuple[tuple[str, ...], Callable[[RawRecord], RawRecord]], ...] = (
    (("conversations",), _conversation),
    (("input_prompt", "output_image"), _sharegpt_4o),
    (("cap", "path"), _open_sora_plan),
    (("texts", "images"), _images_and_texts),
)
"""The first line whose fields are all there decides."""
