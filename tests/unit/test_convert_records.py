import numpy as np
import pytest

from megatron_aia.aia.roles import Task
from megatron_aia.building.convert_records import RecordError, convert_record


def record(*texts, **fields):
    speakers = ["human", "gpt"] * len(texts)
    turns = [{"from": s, "value": t} for s, t in zip(speakers, texts, strict=False)]
    return {"id": 7, "conversations": turns, **fields}


def converted(*texts, **fields):
    sample = convert_record(0, record(*texts, **fields))
    return sample.task, [turn.text for turn in sample.turns], sample.images


@pytest.mark.parametrize(
    ("texts", "image", "task", "stored"),
    [
        # AIA and ORION: generation.
        (["a cat", "<image>"], "a.jpg", Task.GENERATION, ["a cat", "<image>"]),
        (
            ["Can you make an image of a cat?", "<image>\n"],
            "a.jpg",
            Task.GENERATION,
            ["Can you make an image of a cat?", "<image>"],
        ),
        # AIA: understanding without a tag.
        (["What?", "A cat"], "a.jpg", Task.UNDERSTANDING, ["<image>What?", "A cat"]),
        (["What?", "It"], ["a", "b"], Task.UNDERSTANDING, ["<image><image>What?", "It"]),
        # LLaVA: the tag at either end of the question; later questions.
        (["<image>\nWhat?", "A cat"], "a.jpg", Task.UNDERSTANDING, ["<image>What?", "A cat"]),
        (["What? \n<image>", "A cat"], "a.jpg", Task.UNDERSTANDING, ["What?<image>", "A cat"]),
        (["<image>\n", "A cat"], "a.jpg", Task.UNDERSTANDING, ["<image>", "A cat"]),
        (
            ["<image>\nA?", "B", " C? ", "D\n"],
            "a.jpg",
            Task.UNDERSTANDING,
            ["<image>A?", "B", "C?", "D"],
        ),
        (
            ["Is <image> \n like <image>?", " No "],
            ["a", "b"],
            Task.UNDERSTANDING,
            ["Is <image> \n like <image>?", "No"],
        ),
        # Text alone, kept to the letter inside.
        (["Hi  there\n\nyou", "Hello"], None, Task.TEXT, ["Hi  there\n\nyou", "Hello"]),
        # Drawing in any other way.
        (["<image>\nTurn it", "<image>"], ["a", "b"], Task.MIXED, ["<image>Turn it", "<image>"]),
        (["a cat", "Here: <image>"], "a.jpg", Task.MIXED, ["a cat", "Here:<image>"]),
        (
            ["Draw", "<image>", "What?", "A cat"],
            "a.jpg",
            Task.MIXED,
            ["Draw", "<image>", "What?", "A cat"],
        ),
    ],
)
def test_every_row_of_the_rule(texts, image, task, stored):
    fields = {} if image is None else {"image": image}
    images = () if image is None else (image,) if isinstance(image, str) else tuple(image)
    assert converted(*texts, **fields) == (task, stored, images)


def test_where_a_record_comes_from():
    sample = convert_record(3, record("Q", "A", data_source="web", license="CC0"))
    assert (sample.id, sample.source, sample.license) == ("7", "web", "CC0")
    assert convert_record(3, {"conversations": record("Q", "A")["conversations"]}).id == "3"


def test_speakers_of_other_formats():
    turns = [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}]
    assert [turn.role for turn in convert_record(0, {"conversations": turns}).turns] == [
        "human",
        "gpt",
    ]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (record("<image>What?", "A"), "image tags do not match images"),
        (record("<image><image>What?", "A", image="a"), "image tags do not match images"),
        (record("Q"), "turns do not go human, gpt"),
        (record("Q", "A", "Q"), "turns do not go human, gpt"),
        (record("Q", "  "), "a turn is empty"),
        (record("", "<image>", image="a"), "a turn is empty"),
        (record("Q", "A", image={"bytes": ""}), "image is neither a path"),
        (record("Q", "A", image=[1]), "image is neither a path"),
        (record("Q", 5), "a turn is not from human or gpt"),
        ({"id": 7, "conversations": [{"from": "system", "value": "S"}]}, "a turn is not from"),
        ({"id": 7, "conversations": ["Q"]}, "a turn is not from"),
        ({"id": 7}, "no conversations"),
    ],
)
def test_records_that_do_not_fit_are_named(entry, reason):
    with pytest.raises(RecordError, match=f"record 7: .*{reason}") as caught:
        convert_record(0, entry)
    assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("image", "unpacked"),
    [
        (b"png", (b"png",)),
        ([b"png", "a.jpg"], (b"png", "a.jpg")),
        ({"bytes": b"png", "path": "a.png"}, (b"png",)),
        ([{"bytes": None, "path": "a.png"}], ("a.png",)),
    ],
)
def test_pictures_inside_the_record(image, unpacked):
    assert convert_record(0, record("What?", "It", image=image)).images == unpacked
    assert convert_record(0, record("What?", "It", images=image)).images == unpacked


def test_codes_inside_the_record():
    codes = np.arange(6).reshape(2, 3)
    (image,) = convert_record(0, record("a cat", "<image>", image=codes)).images
    assert image is codes


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(RecordError, match="a text is no valid Unicode"):
        convert_record(0, record("Q", "\ud83d"))
