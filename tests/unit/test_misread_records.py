"""Records that would become other samples in silence: refused by name. Faults of public reports."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.tools import run_tool

from megatron_aia.aia.profile import load_profile
from megatron_aia.building.convert_records import RecordError, convert_record
from megatron_aia.building.record_samples import RecordSamples
from megatron_aia.building.sources.field_names import to_record
from megatron_aia.config.files import read_yaml
from megatron_aia.config.locations import check_location
from megatron_aia.shards.pictures import MAX_ASPECT, decode_picture
from megatron_aia.shards.raw_sample import CorruptSampleError


def turns(question: str, answer: str = "A car.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def build(tmp_path: Path, records: Path, *flags: object) -> tuple[int, str]:
    code, out, err = run_tool(
        "build_shards",
        *("--records", records, "--image-root", tmp_path, "--output", tmp_path / "out", *flags),
    )
    return code, out + err


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"image_path": "p.png"}, "image_path"),
        ({"img": ["p.png"]}, "img"),
        ({"photo": b"data"}, "photo"),
        ({"picture": {"bytes": b"data"}}, "picture"),
        ({"video": "v.mp4"}, "video"),
        ({"image": "p.png", "video": "v.mp4"}, "video"),
        ({"audio": ["a.wav"]}, "audio"),
    ],
)
def test_a_field_that_nobody_reads_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RecordError, match=f"the field {field} is not read"):
        to_record({"id": 1, "conversations": turns("What?"), **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"image": "p.png", "image_url": "https://a/p.png", "image_id": "7"},
        {"image": None, "num_images": 0, "has_image": False, "video": None, "audio": []},
        {"image_size": [640, 480], "source": "llava", "category": "x"},
        {"images": np.zeros((2, 2), np.int64)},
    ],
)
def test_other_fields_are_left_alone(fields: dict[str, Any]) -> None:
    record = {"id": 1, "conversations": turns("What?"), **fields}
    assert to_record(record) == record


@pytest.mark.parametrize(
    "tag",
    [
        *("<image_placeholder>", "<|image_pad|>", "<|vision_start|>", "<IMAGE>", "<Img>", "<img>"),
        *("<image_soft_token>", "<|image|>", "[IMG]", "<im_patch>", "<image-1>", "<picture>"),
    ],
)
def test_an_image_tag_of_another_program_is_named(tag: str) -> None:
    record = {"id": 1, "conversations": turns(f"{tag}\nWhat?")}
    with pytest.raises(RecordError, match="image tag of another program") as caught:
        convert_record(0, record)
    assert tag in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a <b> c", '<img src="a.png">', "imagine", "x < image > y", "[1]"]
)
def test_other_texts_stay(text: str) -> None:
    assert convert_record(0, {"conversations": turns(text)}).turns[0].text == text


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def jpeg(**settings: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 64), (200, 30, 30)).save(buffer, "JPEG", **settings)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.jpg", "a.txt", "a.jpg", "a.txt"], "a file of a tar stands there twice: a.jpg"),
        (["a.v1.jpg", "a.v1.txt"], "found v1.jpg, v1.txt; captions are txt caption"),
        (["a.jpg", "b.jpg", "a.txt", "b.txt"], "a caption and a picture that follow each other"),
        (["a.jpg", "a.json"], "found jpg, json; captions are"),
    ],
)
def test_why_a_tar_is_not_read(tmp_path: Path, names: list[str], reason: str) -> None:
    files = [(name, jpeg() if name.endswith("jpg") else b"{}") for name in names]
    code, text = build(tmp_path, write_tar(tmp_path / "in.tar", files))
    assert code == 2
    assert reason in text


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    records = [{"id": str(n), "conversations": turns("ä")} for n in range(3)]
    file = tmp_path / "r.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(records, ensure_ascii=False).encode())
    code, text = build(tmp_path, file)
    assert code == 0, text
    lines = "\n".join(json.dumps(record) for record in records)
    (tmp_path / "r.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    code, text = build(tmp_path, tmp_path / "r.jsonl", "--overwrite")
    assert code == 0, text


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    good = json.dumps({"conversations": turns("a")})
    (tmp_path / "r.jsonl").write_text("\n".join([good, good, good[:-20], good]))
    code, text = build(tmp_path, tmp_path / "r.jsonl")
    assert code == 2
    assert "record number 2, counted from 0: " in text


def encoded(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def test_a_picture_of_more_than_8_bits_is_refused() -> None:
    deep = Image.fromarray(np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16))
    with pytest.raises(CorruptSampleError, match="more than 8 bits a channel"):
        decode_picture(encoded(deep, "PNG"))


def test_a_strip_is_refused() -> None:
    fits, strip = (Image.new("RGB", (MAX_ASPECT * 2 + more, 2)) for more in (0, 1))
    assert decode_picture(encoded(fits, "PNG")).shape == (2, MAX_ASPECT * 2, 3)
    with pytest.raises(CorruptSampleError, match="one side is over 100 times the other"):
        decode_picture(encoded(strip, "PNG"))


def test_the_first_picture_of_a_phone_is_read() -> None:
    """Phones write a second one, of another exposure or for depth, behind the first."""
    first, second = (Image.new("RGB", (24, 16), color) for color in ((200, 30, 30), (0, 0, 0)))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert decode_picture(data).shape == (16, 24, 3)
    assert abs(decode_picture(data).mean((0, 1)) - (200, 30, 30)).max() < 4


@pytest.mark.parametrize("name", ["deep.png", "strip.png"])
def test_the_builder_refuses_such_pictures(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.full((8, 8), 9000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (60_000, 1)).save(tmp_path / "strip.png")
    codebook = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "codebook.npz", codebook=codebook, image_area=np.int64(256))
    (tmp_path / "r.json").write_text(
        json.dumps([{"image": name, "conversations": turns("a", "<image>")}])
    )
    for flags in ((), ("--image-tokenizer", tmp_path / "codebook.npz")):
        code, text = build(tmp_path, tmp_path / "r.json", *flags)
        assert code == 2
        assert name in text
        assert "Traceback" not in text


def test_an_image_stays_below_its_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(Image.new("RGB", (8, 8)), "PNG"))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "inner").mkdir()
    (root / "inner" / "own.png").write_bytes((tmp_path / "secret.png").read_bytes())
    os.mkfifo(root / "pipe.png")
    for name, reason in (
        ("../secret.png", "it leads out of --image-root"),
        (str(tmp_path / "secret.png"), "it leads out of --image-root"),
        ("link.png", "it leads out of --image-root"),
        ("pipe.png", "it is no regular file"),
        ("/dev/zero", "it leads out of --image-root"),
        ("inner", "it is no regular file"),
        ("none.png", "the image is not there"),
        ("inner/../inner/own.png", None),
    ):
        (tmp_path / "r.json").write_text(
            json.dumps([{"image": name, "conversations": turns("<image>a")}])
        )
        code, out, err = run_tool(
            "build_shards",
            *("--records", tmp_path / "r.json", "--image-root", root, "--overwrite"),
            *("--output", tmp_path / "out"),
        )
        assert code == (2 if reason else 0), out + err
        assert reason is None or reason in out + err
        samples = RecordSamples(tmp_path / "r.json", root)
        if reason is None:
            assert samples.read(0, 16).images
        else:
            with pytest.raises((ValueError, FileNotFoundError)):
                samples.read(0, 16)


@pytest.mark.parametrize(
    "url",
    [
        "s3://name:secret@bucket/shards",
        "https://secret@host/shards",
        "https://host/shards?X-Amz-Signature=secret",
        "https://host/shards#secret",
    ],
)
def test_a_url_with_a_secret_is_refused_without_it(url: str) -> None:
    with pytest.raises(ValueError, match="may hold no name, password or query") as caught:
        check_location(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://bucket/a@b/c", "https://host:80/shards", "a?b#c", "/a@b"])
def test_other_places_are_fine(url: str) -> None:
    check_location(url)


@pytest.mark.parametrize("text", ["[" * 5000, "a: " + "[" * 5000, "a: " * 3000, "\xff"])
def test_yaml_without_end_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(text.encode("latin-1"))
    for read in (read_yaml, load_profile):
        with pytest.raises(ValueError, match=r"a\.yaml"):
            read(str(file))
