"""A few shards of made-up samples of every task, for tests of the training path."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from megatron_aia.models.janus_pro.special_tokens import NAMES as JANUS_NAMES
from megatron_aia.models.unifork.special_tokens import NAMES as UNIFORK_NAMES

CODEBOOK_SIZE = 24
TEXT_VOCAB_SIZE = 256
JANUS_GRID = 2
JANUS_TEXT_SIZE = 270
UNIFORK_DEPTH = 3
SPECIAL_TOKENS_OF = {
    "janus_pro": list(JANUS_NAMES.values()),
    "unifork": list(UNIFORK_NAMES.values()),
}
SPECIAL_TOKENS = [name for names in SPECIAL_TOKENS_OF.values() for name in names]


class ByteTokenizer:
    """Every byte is a token."""

    vocab_size = TEXT_VOCAB_SIZE
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def special_id(self, name: str) -> int:
        return TEXT_VOCAB_SIZE + SPECIAL_TOKENS.index(name)


def write_shards(
    folder: Path, samples_per_task: int = 8, shards: int = 2, family: str = "emu3"
) -> Path:
    """Write samples of four tasks.

    Emu3's pictures are 2 to 4 by 2 to 4 codes. Janus-Pro's are 2 by 2 codes where they are drawn,
    and picture files where they are looked at. UniFork's are 2 by 2 tokens of residual codes, and
    none of its samples is mixed.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    makers = [_generation, _understanding, _text, _mixed]
    if family == "unifork":
        del makers[-1]
    samples = [make(i, rng) for i in range(samples_per_task) for make in makers]
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"shard-{shard:06d}.tar")) as writer:
            for key, (document, pictures) in enumerate(samples[shard::shards]):
                members = _MEMBERS[family](f"s{shard}x{key}", document, pictures)
                writer.write(members)
    return folder


def _members(key: str, document: dict[str, Any], pictures: list[np.ndarray]) -> dict[str, Any]:
    names = ["emu3.npy"] if len(pictures) == 1 else [f"{i}.emu3.npy" for i in range(len(pictures))]
    codes = [
        {"member": name, "height": p.shape[0], "width": p.shape[1]}
        for name, p in zip(names, pictures, strict=True)
    ]
    document = {"id": key, "source": "test", "license": "none", **document, "codes": codes}
    return {
        "__key__": key,
        "json": json.dumps(document).encode(),
        **dict(zip(names, pictures, strict=True)),
    }


def _janus_members(
    key: str, document: dict[str, Any], pictures: list[np.ndarray]
) -> dict[str, Any]:
    """Turn codes into a picture file wherever the model looks at them."""
    from PIL import Image

    roles = [turn["from"] for turn in document["conversations"] if "<image>" in turn["value"]]
    codes: list[Any] = []
    images: list[Any] = []
    files: dict[str, Any] = {}
    for number, (role, picture) in enumerate(zip(roles, pictures, strict=True)):
        if role == "gpt":
            name = f"{number}.janus.npy"
            files[name] = np.resize(picture, (JANUS_GRID, JANUS_GRID))
            codes.append({"member": name, "height": JANUS_GRID, "width": JANUS_GRID})
            images.append(None)
            continue
        name, file = f"{number}.png", io.BytesIO()
        pixels = (picture[..., None] * [5, 9, 3] + [10, 20, 70]).astype(np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        files[name] = file.getvalue()
        codes.append(None)
        images.append({"member": name})
    document = {"id": key, "source": "test", "license": "none", **document}
    document |= {"codes": codes, "images": images}
    return {"__key__": key, "json": json.dumps(document).encode(), **files}


def _unifork_members(
    key: str, document: dict[str, Any], pictures: list[np.ndarray]
) -> dict[str, Any]:
    """Turn codes into residual ones."""
    shape = (JANUS_GRID, JANUS_GRID, UNIFORK_DEPTH)
    files = {f"{number}.vila_u.npy": np.resize(p, shape) for number, p in enumerate(pictures)}
    sides = {"height": JANUS_GRID, "width": JANUS_GRID, "depth": UNIFORK_DEPTH}
    codes = [{"member": name, **sides} for name in files]
    document = {"id": key, "source": "test", "license": "none", **document, "codes": codes}
    return {"__key__": key, "json": json.dumps(document).encode(), **files}


_MEMBERS = {
    "emu3": _members,
    "toy": _members,
    "janus_pro": _janus_members,
    "unifork": _unifork_members,
}


def _picture(rng: np.random.Generator) -> np.ndarray:
    height, width = rng.integers(2, 5, size=2)
    return rng.integers(0, CODEBOOK_SIZE, size=(height, width)).astype(np.uint16)


def _words(rng: np.random.Generator, low: int, high: int) -> str:
    return "".join(rng.choice(list("abcdef "), size=rng.integers(low, high))).strip() or "a"


def _turns(*values: str) -> list[dict[str, str]]:
    return [
        {"from": "human" if i % 2 == 0 else "gpt", "value": value} for i, value in enumerate(values)
    ]


def _generation(i: int, rng: np.random.Generator) -> tuple[dict[str, Any], list[np.ndarray]]:
    document = {"task": "generation", "conversations": _turns(_words(rng, 2, 9), "<image>")}
    return document, [_picture(rng)]


def _understanding(i: int, rng: np.random.Generator) -> tuple[dict[str, Any], list[np.ndarray]]:
    values = ["<image>" + _words(rng, 2, 6), _words(rng, 1, 7)]
    if i % 3 == 0:
        values += [_words(rng, 2, 5), _words(rng, 1, 4)]
    return {"task": "understanding", "conversations": _turns(*values)}, [_picture(rng)]


def _text(i: int, rng: np.random.Generator) -> tuple[dict[str, Any], list[np.ndarray]]:
    turns = _turns(_words(rng, 2, 6), _words(rng, 1, 9))
    return {"task": "text", "conversations": turns}, []


def _mixed(i: int, rng: np.random.Generator) -> tuple[dict[str, Any], list[np.ndarray]]:
    values = ["<image>" + _words(rng, 2, 4), _words(rng, 1, 4), _words(rng, 2, 4), "<image>"]
    return {"task": "mixed", "conversations": _turns(*values)}, [_picture(rng), _picture(rng)]
