"""Residual codes of pictures: nearer with every code, whole in a file, refused where wrong."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megatron_aia.building.demo import load_photographs
from megatron_aia.building.demo.training import train_residual_quantizer
from megatron_aia.models.image_tokenizers import load_image_tokenizer
from megatron_aia.shards.codes import decode_codes
from megatron_aia.shards.raw_sample import CorruptSampleError
from megatron_aia.shards.reader import CodesEntry, parse_description
from megatron_aia.shards.residual_quantizer import ResidualPatchQuantizer

SIDE = 64
DEPTH = 3


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    return list(load_photographs(SIDE // 8).values())


@pytest.fixture(scope="module")
def quantizer(photographs: list[Image.Image]) -> ResidualPatchQuantizer:
    return train_residual_quantizer(photographs, 64, 8, SIDE * SIDE, DEPTH)


def test_every_code_brings_the_picture_nearer(
    quantizer: ResidualPatchQuantizer, photographs: list[Image.Image]
) -> None:
    image = photographs[0]
    codes = quantizer.encode(image)
    assert codes.shape == (8, 8, DEPTH) and codes.max() < quantizer.codebook_size
    errors = []
    for depth in range(1, DEPTH + 1):
        drawn = quantizer.decode(codes[..., :depth])
        errors.append(float(np.square(np.asarray(drawn, float) - np.asarray(image)).mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.8 * errors[0]


def test_a_file_holds_all_of_it(
    quantizer: ResidualPatchQuantizer, photographs: list[Image.Image], tmp_path: Path
) -> None:
    quantizer.save(tmp_path / "codebook.npz")
    loaded = load_image_tokenizer(tmp_path / "codebook.npz")
    assert loaded.fingerprint == quantizer.fingerprint
    assert loaded.grid(100, 50) == (8, 8)
    np.testing.assert_array_equal(loaded.encode(photographs[1]), quantizer.encode(photographs[1]))


@pytest.mark.parametrize(
    "arrays",
    [
        {"residual_codebook": np.zeros((2, 8, 8, 3), np.uint8), "depth": 2, "image_area": 64},
        {"residual_codebook": np.zeros((2, 8, 8, 3), np.int16), "image_area": 64},
    ],
)
def test_a_damaged_codebook(arrays: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "codebook.npz", **arrays)
    with pytest.raises(ValueError, match="is not a patch codebook"):
        load_image_tokenizer(tmp_path / "codebook.npz")


def stored(codes: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, codes)
    return file.getvalue()


def described(**entry: Any) -> CodesEntry:
    document = {
        "task": "generation",
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "<image>"}],
        "codes": [{"member": "vila_u.npy", "height": 2, "width": 3, **entry}],
    }
    (found,) = parse_description(json.dumps(document).encode()).images
    assert isinstance(found, CodesEntry)
    return found


@pytest.mark.parametrize("order", ["C", "F"])
def test_residual_codes_in_a_shard(order: Any) -> None:
    codes = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    data = stored(np.asarray(codes, order=order))
    np.testing.assert_array_equal(decode_codes(data, described(depth=4), 24), codes)
    for entry in (described(), described(depth=3)):
        with pytest.raises(CorruptSampleError, match=r"not uint16 \[2, 3"):
            decode_codes(data, entry, 24)


@pytest.mark.parametrize("depth", [0, -1, "4", 2.5, True, None])
def test_a_depth_that_is_none(depth: Any) -> None:
    with pytest.raises(CorruptSampleError, match="an entry of 'codes' has the depth"):
        described(depth=depth)
