"""Shards from a stranger who means harm: one clear line each, and no memory or time spent."""

import io
import json
import struct
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toy_data import CODEBOOK_SIZE, npy, toy_sample, write_shard

from megatron_aia.shards import scan
from megatron_aia.shards.checksum import dump_with_checksum
from megatron_aia.shards.codes import decode_codes
from megatron_aia.shards.index import open_index
from megatron_aia.shards.pictures import decode_picture, read_pixel_size
from megatron_aia.shards.raw_sample import CorruptSampleError
from megatron_aia.shards.reader import CodesEntry, parse_description
from megatron_aia.shards.verify import VerifyOptions, verify_folder

MEGABYTE = 1 << 20


def text_sample(**changes: object) -> dict:
    return {**toy_sample("a", "text", "question", "answer")["json"], **changes}


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], **settings) -> Path:
    with tarfile.open(path, "w", **settings) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def refuse(folder: Path, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        open_index(folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 1000
    for word in words:
        assert word in message, message
    report = verify_folder(str(folder), VerifyOptions((str(folder),), num_workers=0))
    assert any(problem.text in message for problem in report.problems), "the verifier says it too"


def named(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/cron.json", "outside its folder"),
        ("../../a.json", "outside its folder"),
        ("x/../../a.json", "outside its folder"),
        ("a\n.json", "no printable name"),
        ("a\x1b[2J.json", "no printable name"),
        ("\udcff\udcfe.json", "a.tar"),
        ("json", "not named KEY.SUFFIX"),
    ],
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
@pytest.mark.parametrize("length", ["short", "long"])
def test_names_that_lead_elsewhere(
    tmp_path: Path, name: str, words: str, form: int, length: str
) -> None:
    """Names of over 100 characters have headers of their own, in two forms."""
    if length == "long":
        head, dot, suffix = name.rpartition(".")
        name = f"{head}{'x' * 200}{dot}{suffix}"
    content = json.dumps(text_sample()).encode()
    write_tar(tmp_path / "a.tar", [(named(name), content)], format=form)
    refuse(tmp_path, "a.tar", words)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_long_and_foreign_names_are_read(tmp_path: Path, form: int) -> None:
    keys = ["k" * 180, "./folder/" + "ключ" * 40, "folder.d/a b\u202fc", "鍵"]
    content = json.dumps(text_sample(), ensure_ascii=False).encode()
    members = [(named("folder", tarfile.DIRTYPE), b"")]
    members += [(named(f"{key}.json"), content) for key in keys]
    members[1][0].mtime = 1.5
    write_tar(tmp_path / "a.tar", members, format=form)
    index = open_index(tmp_path)
    assert [index.key(i) for i in range(len(index))] == [f"a.tar/{key}" for key in keys]
    assert index.read(1, CODEBOOK_SIZE).turns[1].text == "answer"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "of an unknown type"),
    ],
)
def test_members_that_are_no_files(tmp_path: Path, kind: bytes, words: str) -> None:
    info = named("a.json", kind)
    info.linkname = "/etc/passwd"
    write_tar(tmp_path / "a.tar", [(info, b"")])
    refuse(tmp_path, "a.tar", words)


def change_header(path: Path, header: int, start: int, field: bytes) -> None:
    """Overwrite a field of a tar header, and make the header's checksum fit."""
    shard = bytearray(path.read_bytes())
    block = shard[header : header + 512]
    block[start : start + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    shard[header : header + 512] = block
    path.write_bytes(shard)


@pytest.mark.parametrize(
    "size",
    [
        b"\x80" + b"\x7f" * 11,
        b"\xff" + b"\xff" * 9 + b"\xfe\x00",
        b"\xff" + b"\x00" * 11,
        b"77777777777\0",
        b"-0000001000\0",
    ],
    ids=["2^87", "-512", "-2^88", "8 GB", "minus"],
)
def test_sizes_that_lie(tmp_path: Path, size: bytes) -> None:
    """A negative size makes tarfile of some Python releases read one header for ever."""
    path = write_shard(tmp_path / "a.tar", [toy_sample("a", "text", "b", "c")])
    change_header(path, 0, 124, size)
    refuse(tmp_path, "a.tar")


@pytest.mark.parametrize(
    "records",
    [
        b"25 size=-1000000000000000\n",
        b"18 size=999999999\n",
        b"99999999999 path=a.json\n",
        b"9 path=a.json\n",
        b"path=a.json\n",
        b"30 GNU.sparse.realsize=1000000\n",
        b"1" * 60_000,
        b" " * 60_000,
        b"0 " * 30_000,
    ],
)
def test_extended_headers_that_lie(tmp_path: Path, records: bytes) -> None:
    content = json.dumps(text_sample()).encode()
    members = [(named("x", tarfile.XHDTYPE), records), (named("a.json"), content)]
    write_tar(tmp_path / "a.tar", members, format=tarfile.USTAR_FORMAT)
    started = time.process_time()
    refuse(tmp_path, "a.tar")
    assert time.process_time() - started < 5


def test_an_extended_header_that_fills_the_memory(tmp_path: Path) -> None:
    content = json.dumps(text_sample()).encode()
    members = [(named("x", tarfile.XHDTYPE), bytes(8 * MEGABYTE)), (named("a.json"), content)]
    write_tar(tmp_path / "a.tar", members, format=tarfile.USTAR_FORMAT)
    refuse(tmp_path, "a.tar", "header at byte 0 is damaged")


def test_an_extended_header_without_a_member(tmp_path: Path) -> None:
    content = json.dumps(text_sample()).encode()
    members = [(named("a.json"), content), (named("x", tarfile.XHDTYPE), b"15 path=b.json\n")]
    write_tar(tmp_path / "a.tar", members, format=tarfile.USTAR_FORMAT)
    refuse(tmp_path, "a.tar", "has no member")


def test_a_member_that_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are so high that the test lowers them, but one of JSON."""
    write_shard(tmp_path / "a.tar", [{"__key__": "a", "json": b" " * (scan.MAX_JSON_BYTES + 1)}])
    tracemalloc.start()
    refuse(tmp_path, "a.tar: sample a: 16777217 bytes of json are over 16777216")
    assert tracemalloc.get_traced_memory()[1] < 4 * MEGABYTE
    tracemalloc.stop()

    monkeypatch.setattr(scan, "MAX_IMAGE_BYTES", 300)
    sample = toy_sample("b", "mixed", "<image><image>q", "a")
    write_shard(tmp_path / "a.tar", [sample])
    assert len(open_index(tmp_path)) == 1
    one_for_three = toy_sample("b", "understanding", "<image>q", "<image><image>")
    one_for_three["json"]["codes"] = one_for_three["json"]["codes"][:1] * 3
    write_shard(tmp_path / "a.tar", [one_for_three])
    refuse(tmp_path, "a.tar: sample b: 420 bytes of images are over 300")


def test_an_array_of_columns_is_read() -> None:
    codes = np.arange(6, dtype=np.uint16).reshape(2, 3)
    read = decode_codes(npy(np.asfortranarray(codes)), CodesEntry("x", 2, 3), CODEBOOK_SIZE)
    np.testing.assert_array_equal(read, codes)


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def jpeg_of_many_scans() -> bytes:
    image_module = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image_module.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 300 + whole[-2:]


HOSTILE_PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "small file, huge picture": (lambda: png(60_000, 60_000, b"\0" * 1000), "can be read"),
    "just over the limit": (lambda: png(10_000, 8_001, b"\0" * 1000), "pixels are over"),
    "no pixels": (lambda: png(0, 0, b""), "is none of"),
    "cut": (lambda: png(40, 40, b"\0" * 121 * 40)[:-30], "can be read"),
    "many scans": (jpeg_of_many_scans, "more than 200 scans"),
}


@pytest.mark.parametrize("name", HOSTILE_PICTURES)
def test_pictures_that_lie(name: str) -> None:
    pytest.importorskip("PIL.Image")
    make, words = HOSTILE_PICTURES[name]
    data = make()
    tracemalloc.start()
    with pytest.raises(CorruptSampleError, match=words):
        decode_picture(data)
    assert tracemalloc.get_traced_memory()[1] < 16 * MEGABYTE
    tracemalloc.stop()


def test_the_size_of_a_huge_picture_is_refused_too() -> None:
    pytest.importorskip("PIL.Image")
    with pytest.raises(CorruptSampleError):
        read_pixel_size(png(60_000, 60_000, b"\0" * 1000))


def test_a_sample_that_lies_about_its_checksum(tmp_path: Path) -> None:
    whole = dump_with_checksum(text_sample())
    assert parse_description(whole).turns[1].text == "answer"
    with pytest.raises(CorruptSampleError, match="does not fit its checksum"):
        parse_description(whole.replace(b"answer", b"answes"))
