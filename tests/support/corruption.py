"""Damages for shards: what disks, networks and people do to files."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megatron_aia.shards.checksum import checksum, dump_with_checksum
from support.tiny_data import write_shards

Members = list[tuple[str, bytes]]
Damage = Callable[[np.random.Generator, bytes], bytes]


def write_sealed_shards(folder: Path) -> Path:
    """Write tiny shards of Janus-Pro's kind with checksums and a ``dataset.json``."""
    write_shards(folder, samples_per_task=2, shards=2, family="janus_pro")
    for path in folder.glob("*.tar"):
        members = dict(unpack(path.read_bytes()))
        for name in [name for name in members if name.endswith(".json")]:
            fields = json.loads(members[name])
            for entry in [*fields["codes"], *fields["images"]]:
                if entry is not None:
                    file = members[f"{name.removesuffix('json')}{entry['member']}"]
                    entry["crc32"] = checksum(file)
            members[name] = dump_with_checksum(fields)
        path.write_bytes(pack(list(members.items())))
    shards = [{"name": p.name, "size": p.stat().st_size} for p in sorted(folder.glob("*.tar"))]
    tasks = ("generation", "understanding", "text", "mixed")
    description = {"num_samples": dict.fromkeys(tasks, 2), "codebook_size": 24, "shards": shards}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def unpack(shard: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(shard)) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]


def pack(members: Members) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def flip_any_bit(rng: np.random.Generator, shard: bytes) -> bytes:
    return _flip(shard, int(rng.integers(8 * len(shard))))


def _spans(shard: bytes) -> list[tuple[int, int]]:
    with tarfile.open(fileobj=io.BytesIO(shard)) as archive:
        return [(info.offset_data, info.size) for info in archive]


def flip_bit_of_content(rng: np.random.Generator, shard: bytes) -> bytes:
    offset, size = _spans(shard)[rng.integers(len(_spans(shard)))]
    return _flip(shard, int(8 * offset + rng.integers(8 * size)))


def flip_bit_of_header(rng: np.random.Generator, shard: bytes) -> bytes:
    offset, _ = _spans(shard)[rng.integers(len(_spans(shard)))]
    return _flip(shard, int(8 * (offset - 512) + rng.integers(8 * 512)))


def cut(rng: np.random.Generator, shard: bytes) -> bytes:
    return shard[: rng.integers(len(shard))]


def cut_at_a_block(rng: np.random.Generator, shard: bytes) -> bytes:
    return shard[: 512 * int(rng.integers(len(shard) // 512))]


def _overwrite(shard: bytes, start: int, data: bytes) -> bytes:
    return (shard[:start] + data + shard[start + len(data) :])[: len(shard)]


def zero_block(rng: np.random.Generator, shard: bytes) -> bytes:
    return _overwrite(shard, 512 * int(rng.integers(len(shard) // 512)), bytes(512))


def zero_range(rng: np.random.Generator, shard: bytes) -> bytes:
    return _overwrite(shard, int(rng.integers(len(shard))), bytes(int(rng.integers(1, 5000))))


def noise_block(rng: np.random.Generator, shard: bytes) -> bytes:
    return _overwrite(shard, 512 * int(rng.integers(len(shard) // 512)), rng.bytes(512))


def lose_bytes(rng: np.random.Generator, shard: bytes) -> bytes:
    start = int(rng.integers(len(shard)))
    return shard[:start] + shard[start + int(rng.choice([1, 3, 512, 1024, 1536])) :]


def insert_bytes(rng: np.random.Generator, shard: bytes) -> bytes:
    start = int(rng.integers(len(shard)))
    return shard[:start] + rng.bytes(int(rng.choice([1, 3, 512, 1024]))) + shard[start:]


def swap_contents(rng: np.random.Generator, shard: bytes) -> bytes:
    members = unpack(shard)
    suffix = str(rng.choice(["json", "npy", "png"]))
    a, b = rng.choice([i for i, (n, _) in enumerate(members) if n.endswith(suffix)], 2, False)
    (name_a, content_a), (name_b, content_b) = members[a], members[b]
    members[a], members[b] = (name_a, content_b), (name_b, content_a)
    return pack(members)


def swap_members(rng: np.random.Generator, shard: bytes) -> bytes:
    members = unpack(shard)
    a, b = rng.choice(len(members), 2, False)
    members[a], members[b] = members[b], members[a]
    return pack(members)


def drop_member(rng: np.random.Generator, shard: bytes) -> bytes:
    members = unpack(shard)
    del members[rng.integers(len(members))]
    return pack(members)


def double_member(rng: np.random.Generator, shard: bytes) -> bytes:
    members = unpack(shard)
    members.insert(rng.integers(len(members)), members[rng.integers(len(members))])
    return pack(members)


def drop_sample(rng: np.random.Generator, shard: bytes) -> bytes:
    members = unpack(shard)
    key = members[rng.integers(len(members))][0].split(".")[0]
    return pack([(name, content) for name, content in members if name.split(".")[0] != key])


def _edit(
    rng: np.random.Generator, shard: bytes, suffix: str, edit: Callable[[bytes], bytes]
) -> bytes:
    members = unpack(shard)
    number = rng.choice([i for i, (name, _) in enumerate(members) if name.endswith(suffix)])
    name, content = members[number]
    members[number] = name, edit(content)
    return pack(members)


def change_type_of_codes(rng: np.random.Generator, shard: bytes) -> bytes:
    kinds = ["<u1", ">u2", "<i2", "<i8", "<f4", "<U3", "|b1"]

    def edit(content: bytes) -> bytes:
        file = io.BytesIO()
        np.save(file, np.load(io.BytesIO(content)).astype(rng.choice(kinds)))
        return file.getvalue()

    return _edit(rng, shard, "npy", edit)


def change_shape_of_codes(rng: np.random.Generator, shard: bytes) -> bytes:
    shapes = [b"(9, 2)", b"(2, 9)", b"(4,)  ", b"()    ", b"(9999999999, 9999999999)", b"(2, -2)"]
    shape = bytes(rng.choice(shapes))
    return _edit(rng, shard, "npy", lambda content: content.replace(b"(2, 2)", shape, 1))


def change_values_of_codes(rng: np.random.Generator, shard: bytes) -> bytes:
    def edit(content: bytes) -> bytes:
        file = io.BytesIO()
        codes = np.load(io.BytesIO(content))
        codes.flat[rng.integers(codes.size)] += rng.integers(1, 60_000)
        np.save(file, codes)
        return file.getvalue()

    return _edit(rng, shard, "npy", edit)


def edit_json(rng: np.random.Generator, shard: bytes) -> bytes:
    edits = [
        (b'"text"', b'"mixed"'),
        (b'"height": 2', b'"height": 20'),
        (b'"codes"', b'"coeds"'),
        (b'"human"', b'"humane"'),
        (b"<image>", b"<imagf>"),
        (b'"conversations": [', b'"conversations": [{}, '),
        (b'"value": "', b'"value": "not '),
        (b'"id"', b'"ie"'),
        (b"}", b""),
    ]
    old, new = edits[rng.integers(len(edits))]
    return _edit(rng, shard, "json", lambda content: content.replace(old, new, 1))


DAMAGES: tuple[Damage, ...] = (
    flip_any_bit,
    flip_bit_of_content,
    flip_bit_of_header,
    cut,
    cut_at_a_block,
    zero_block,
    zero_range,
    noise_block,
    lose_bytes,
    insert_bytes,
    swap_contents,
    swap_members,
    drop_member,
    double_member,
    drop_sample,
    change_type_of_codes,
    change_shape_of_codes,
    change_values_of_codes,
    edit_json,
)
