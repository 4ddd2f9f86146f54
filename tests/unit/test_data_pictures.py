"""Pictures in samples: found by the index, decoded only when somebody asks."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from toy_data import CODEBOOK_SIZE, npy, toy_encoder, toy_sample, toy_samples, write_shard

from megatron_aia.shards import pictures
from megatron_aia.shards.index import open_index
from megatron_aia.shards.pictures import crop_to_square, decode_picture, read_pixel_size
from megatron_aia.shards.raw_sample import CorruptSampleError
from megatron_aia.shards.reader import CodesEntry, PictureEntry, parse_description

image_module = pytest.importorskip("PIL.Image")


def picture_file(pixels: np.ndarray, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image_module.fromarray(pixels).save(file, kind, **settings)
    return file.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def seen_sample(key: str = "a", contents: bytes = b"broken") -> dict:
    sample = toy_sample(key, "understanding", "<image>q", "a")
    del sample["emu3.npy"]
    sample["json"] |= {"codes": [], "images": [{"member": "png", "width": 4, "height": 3}]}
    return {**sample, "png": contents}


def edit_sample(**lists: object) -> dict:
    """A picture to look at and one to draw, both stored both ways."""
    sample = toy_sample("edit", "mixed", "<image>turn it", "<image>")
    sample["json"] |= {"images": [{"member": "0.png"}, {"member": "1.png"}], **lists}
    return {**sample, "0.png": picture_file(noise(3, 4)), "1.png": picture_file(noise(5, 6))}


def read_only(folder: Path, sample: dict):
    write_shard(folder / "a.tar", [sample])
    return open_index(folder).read(0, CODEBOOK_SIZE)


def test_a_picture_is_decoded_when_asked(tmp_path: Path) -> None:
    pixels = noise(3, 4)
    (picture,) = read_only(tmp_path, seen_sample(contents=picture_file(pixels))).images
    np.testing.assert_array_equal(picture.decode(), pixels)
    assert picture.decode().dtype == np.uint8


def test_codes_go_before_a_picture_of_the_same_tag(tmp_path: Path) -> None:
    """A folder with kept pictures is what it was before pictures could be read."""
    sample = edit_sample()
    with_pictures = read_only(tmp_path / "kept", sample)
    assert [image.shape for image in with_pictures.codes] == [(2, 3), (2, 3)]
    fingerprint = open_index(tmp_path / "kept").fingerprint
    sample["1.png"] += b"more"
    read_only(tmp_path / "changed", sample)
    assert open_index(tmp_path / "changed").fingerprint == fingerprint


def test_each_tag_has_the_one_that_is_there(tmp_path: Path) -> None:
    codes = edit_sample()["json"]["codes"]
    seen, drawn = read_only(tmp_path, edit_sample(codes=[None, codes[1]])).images
    assert seen.decode().shape == (3, 4, 3)
    assert isinstance(drawn, np.ndarray) and drawn.shape == (2, 3)
    again = edit_sample(codes=[None, codes[1]], images=[{"member": "1.png"}, None])
    seen, _ = read_only(tmp_path / "null", again).images
    assert seen.decode().shape == (5, 6, 3)


def test_the_samples_in_the_documents_are_samples() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    one, (seen, drawn) = (parse_description(text.encode()).images for text in examples)
    assert [type(image) for image in (*one, seen, drawn)] == [CodesEntry, PictureEntry, CodesEntry]


def test_a_model_of_codes_says_what_it_lacks(tmp_path: Path) -> None:
    sample = read_only(tmp_path, seen_sample())
    with pytest.raises(ValueError, match=r"a\.tar/a: .*--understanding-images codes"):
        _ = sample.codes


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"codes": [None, None], "images": []}, "2 <image> tags for 0 images"),
        ({"codes": [], "images": [{"member": "0.png"}, None]}, "2 <image> tags for 1 images"),
        ({"codes": [], "images": [{"member": "0.png"}]}, "2 <image> tags for 1 images"),
        ({"codes": [], "images": [{}, {"member": "0.png"}]}, "'images' lacks member"),
        ({"codes": [], "images": ["0.png", "1.png"]}, "'images' is not a list of objects"),
        ({"codes": [{}, {}]}, "'codes' lacks member, height or width"),
        ({"codes": [], "images": [{"member": "0.png"}, {"member": "2.png"}]}, "2.png is missing"),
    ],
)
def test_tags_without_an_image_are_found_by_the_index(
    tmp_path: Path, lists: dict, words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        read_only(tmp_path, edit_sample(**lists))
    for word in ("a.tar: sample edit", words, "rebuild or delete the shard"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"words", "is none of JPEG, PNG, WEBP"),
        (picture_file(noise(9, 9))[:150], "is no picture that can be read"),
        (picture_file(noise(9, 9), "JPEG")[:500], "is no picture that can be read"),
        (picture_file(noise(9, 9), "BMP"), "is none of JPEG, PNG, WEBP"),
        (npy(np.array([[{}]])), "is none of"),
    ],
    ids=["words", "cut png", "cut jpeg", "bmp", "pickle"],
)
def test_a_broken_picture_fails_when_it_is_decoded(
    tmp_path: Path, contents: bytes, words: str
) -> None:
    (picture,) = read_only(tmp_path, seen_sample(contents=contents)).images
    with pytest.raises(CorruptSampleError) as caught:
        picture.decode()
    for word in ("a.tar: sample a: png", words, "rebuild or delete the shard"):
        assert word in str(caught.value)


def test_a_small_file_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 80)
    decode_picture(picture_file(noise(8, 10)))
    with pytest.raises(ValueError, match="9 x 9 pixels are over 80"):
        decode_picture(picture_file(noise(9, 9)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_is_turned_as_its_camera_meant(kind: str) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    exif = image_module.Exif()
    exif[0x0112] = 6  # a quarter turn
    decoded = decode_picture(picture_file(pixels, kind, exif=exif))
    assert decoded.shape == (32, 16, 3)
    assert decoded[:12].max() < 30 and decoded[20:].min() > 225


@pytest.mark.parametrize("orientation", [None, *range(10)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_size_in_the_header_is_that_of_the_pixels(kind: str, orientation: int | None) -> None:
    exif = image_module.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    contents = picture_file(noise(16, 32), kind, exif=exif)
    height, width, _ = decode_picture(contents).shape
    assert read_pixel_size(contents) == (width, height)


def test_a_size_is_read_without_the_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = picture_file(noise(40, 60), "JPEG")[:900]
    (picture,) = read_only(tmp_path / "cut", seen_sample(contents=cut)).images
    assert picture.pixel_size() == (60, 40)
    with pytest.raises(ValueError, match=r"a\.tar: sample a: png is no picture"):
        picture.decode()
    (words,) = read_only(tmp_path / "words", seen_sample(contents=b"words")).images
    with pytest.raises(ValueError, match=r"a\.tar: sample a: png is none of JPEG"):
        words.pixel_size()
    monkeypatch.setattr(pictures, "MAX_PIXELS", 80)
    with pytest.raises(ValueError, match="60 x 40 pixels are over 80"):
        picture.pixel_size()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    image = image_module.fromarray(noise(5, 6)).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    np.testing.assert_array_equal(decode_picture(file.getvalue()), image.convert("RGB"))


def test_an_index_of_an_older_version_is_made_again(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", toy_samples("mixed", 3))
    fingerprint = open_index(tmp_path).fingerprint
    header = tmp_path / ".index" / "index.json"
    older = {**json.loads(header.read_bytes()), "format_version": 1}
    header.write_text(json.dumps(older))
    (tmp_path / ".index" / f"table-{fingerprint}.npz").write_bytes(b"of another form")
    index = open_index(tmp_path)
    assert len(toy_encoder(index.read(2, CODEBOOK_SIZE), False)) > 12
    assert index.fingerprint == fingerprint


@pytest.mark.parametrize(("width", "height"), [(101, 61), (61, 101), (7, 30), (40, 40), (385, 97)])
def test_crop_is_the_middle(width: int, height: int) -> None:
    side = 24
    image = image_module.fromarray(noise(height, width))
    cut = crop_to_square(image, side)
    assert cut.size == (side, side)
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), image_module.Resampling.BOX)
    short, long = min(image.size), max(image.size)
    scaled = round(long * side / short)
    size = (side, scaled) if image.height > image.width else (scaled, side)
    pixels = np.asarray(image.resize(size, image_module.Resampling.BICUBIC))
    first = (scaled - side) // 2
    middle = slice(first, first + side)
    expected = pixels[middle] if image.height > image.width else pixels[:, middle]
    np.testing.assert_array_equal(np.asarray(cut), expected)
