"""Samples that no reader accepts, with words that every reader says of them."""

import json
import struct

import numpy as np
from toy_data import npy, toy_sample


def text_sample(**changes: object) -> dict:
    """Return the JSON of a whole sample, with changes."""
    return {**toy_sample("a", "text", "question", "answer")["json"], **changes}


def broken_sample(**changes: object) -> dict:
    """Return a sample with an image whose JSON is changed; None takes a field away."""
    sample = toy_sample("bad", "understanding", "<image>q", "a")
    description = {**sample["json"], **changes}
    return {**sample, "json": {k: v for k, v in description.items() if v is not None}}


def nested(depth: int) -> bytes:
    return b'{"task": "text", "conversations": ' + b"[" * depth + b"]" * depth + b"}"


def npy_with_header(header: str, version: tuple[int, int] = (1, 0), values: bytes = b"") -> bytes:
    text = header.encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + values


def header_of(shape: str, descr: str = "'<u2'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"


BAD_DESCRIPTIONS: list[tuple[bytes, str]] = [
    (nested(100_000), "does not parse"),
    (json.dumps(text_sample()).encode()[:-1] + b', "n": ' + b"9" * 100_000 + b"}", "not parse"),
    (json.dumps(text_sample(n=float("nan"))).encode(), "NaN is no number"),
    (json.dumps(text_sample(n=float("inf"))).encode(), "Infinity is no number"),
    (b'{"task": "text", ' + json.dumps(text_sample()).encode()[1:], "'task' is there twice"),
    (json.dumps(text_sample()).encode("utf-16"), "does not parse"),
    (json.dumps(text_sample()).encode().replace(b"answer", b"\xed\xa0\x80"), "not parse"),
    (json.dumps(text_sample()).replace("answer", "\\ud800").encode(), "surrogate"),
    (json.dumps(text_sample(task="t" * 10**6)).encode(), "(1000002 characters)"),
    (json.dumps(text_sample(task=["text"])).encode(), "task ['text'] is none"),
    (json.dumps(text_sample(task={})).encode(), "task {} is none"),
    (json.dumps(text_sample(conversations={})).encode(), "not a list of objects"),
    (json.dumps(text_sample(conversations=None)).encode(), "not a list of objects"),
    (json.dumps(text_sample(codes=7)).encode(), "not a list of objects"),
    (json.dumps(text_sample(codes=False)).encode(), "not a list of objects"),
    (json.dumps(text_sample(codes="")).encode(), "not a list of objects"),
    (b"null", "not an object"),
    (b"", "does not parse"),
]
"""JSON of a sample."""
BAD_ENTRIES: list[dict] = [
    {"member": "emu3.npy", "height": 2.0, "width": 3},
    {"member": "emu3.npy", "height": True, "width": 3},
    {"member": "emu3.npy", "height": -2, "width": -3},
    {"member": "emu3.npy", "height": 10**12, "width": 3},
    {"member": ["emu3.npy"], "height": 2, "width": 3},
    {"member": "emu3.npy", "height": 2, "width": 3, "crc32": 12},
    {"member": "emu3.npy", "height": 2, "width": 3, "crc32": "0123456g"},
    {"member": "\ud800", "height": 2, "width": 3},
    {"member": "../../etc/passwd", "height": 2, "width": 3},
]
"""What the JSON says of an image."""
BAD_SAMPLES: list[tuple[dict, str]] = [
    ({"__key__": "bad", "txt": b"words"}, "no json beside txt"),
    ({**broken_sample(), "json": b"{"}, "does not parse"),
    ({**broken_sample(), "json": b"[]"}, "not an object"),
    ({k: v for k, v in broken_sample().items() if k != "emu3.npy"}, "emu3.npy is missing"),
    (broken_sample(task="painting"), "task 'painting'"),
    (broken_sample(task=None), "task None"),
    (broken_sample(conversations=None), "no conversations"),
    (broken_sample(conversations=[{"from": "user", "value": "<image>"}]), "from 'user'"),
    (broken_sample(conversations=[{"from": "gpt", "value": 3}]), "not text"),
    (broken_sample(conversations=["words"]), "list of objects"),
    (broken_sample(conversations=[{"from": "gpt", "value": "-"}]), "0 <image> tags for 1"),
    (broken_sample(codes=[]), "1 <image> tags for 0"),
    (broken_sample(codes=[{"member": "emu3.npy"}]), "lacks member, height or width"),
    *((broken_sample(codes=[entry]), "") for entry in BAD_ENTRIES),
    *(({"__key__": "bad", "json": data}, words) for data, words in BAD_DESCRIPTIONS),
]
BAD_CODES: list[tuple[bytes, str]] = [
    (npy(np.full((2, 3), 100, np.uint16)), "code 100, outside a codebook of 100"),
    (npy(np.zeros((2, 3), np.int64)), "int64"),
    (npy(np.zeros(6, np.uint16)), "[6], not uint16 [2, 3]"),
    (npy(np.zeros((3, 2), np.uint16)), "[3, 2], not uint16 [2, 3]"),
    (npy(np.array([[{}]])), "object [1, 1], not uint16 [2, 3]"),
    (npy(np.zeros((2, 3), np.uint16))[:-2], "no plain npy array"),
    (b"words", "no plain npy array"),
    (npy_with_header(header_of("(1000000, 1000000)")), ""),
    (npy_with_header(header_of("(2, 3)"), values=b"\0" * 10), ""),
    (npy_with_header(header_of("(2, 3)"), values=b"\0" * 14), ""),
    (npy_with_header(header_of("(-2, -3)"), values=b"\0" * 12), ""),
    (npy_with_header(header_of("(2, 3)", "'|O'"), values=b"\x80\x04."), ""),
    (npy_with_header(header_of("(2, 3)", "[('x', '<u2')]"), values=b"\0" * 12), ""),
    (npy_with_header(header_of("(2, 3)", "'>u2'"), values=b"\0" * 12), ""),
    (npy_with_header("(" * 9_000), ""),
    (npy_with_header(header_of("(2, 3)"), (2, 0), b"\0" * 10), ""),
    (npy_with_header(header_of("(2, 3)"), (3, 0), b"\0" * 12), ""),
    (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", ""),
    (b"\x93NUMPY", ""),
    (b"", ""),
]
"""Content of ``emu3.npy``, of which a sample says that it has ``[2, 3]`` codes."""
