"""What checks cost while shards are indexed, verified and read.

    python benchmarks/shard_reading.py --folder DIR [--samples 20000] [--shards 8]

Writes Emu3's samples of 64 x 64 codes to DIR, once with checksums and once without, and deletes
nothing. CPU seconds are those of this process and its workers; the best of several rounds, all
variants in turn in each.
"""

import io
import json
import resource
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from webdataset import TarWriter

from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options
from megatron_aia.runtime.workers import map_in_processes
from megatron_aia.shards.checksum import checksum, dump_with_checksum
from megatron_aia.shards.folder import list_shards
from megatron_aia.shards.index import open_index
from megatron_aia.shards.verify import VerifyOptions, verify_folder
from megatron_aia.shards.walk import walk_shard

CODEBOOK_SIZE = 32_768
SIDE = 64


@dataclass
class Options:
    folder: Path
    """For the shards; kept for the next run."""
    samples: int = 20_000
    shards: int = 8
    rounds: int = 3
    num_workers: int = 2
    """Processes of the parallel variants."""


def write_folder(folder: Path, options: Options, with_checksums: bool) -> Path:
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    in_shard = options.samples // options.shards
    for shard in range(options.shards):
        with TarWriter(str(folder / f"shard-{shard:06d}.tar"), mtime=0) as writer:
            for number in range(in_shard):
                key = f"{shard * in_shard + number:09d}"
                writer.write({"__key__": key, **make_sample(rng, key, with_checksums)})
    return folder


def make_sample(rng: np.random.Generator, key: str, with_checksums: bool) -> dict[str, bytes]:
    file = io.BytesIO()
    np.save(file, rng.integers(0, CODEBOOK_SIZE, (SIDE, SIDE), dtype=np.uint16))
    codes = file.getvalue()
    entry = {"member": "emu3.npy", "height": SIDE, "width": SIDE}
    fields = {
        "id": key,
        "task": "generation",
        "conversations": [
            {"from": "human", "value": "a word " * 60},
            {"from": "gpt", "value": "<image>"},
        ],
        "codes": [entry],
    }
    if not with_checksums:
        return {"emu3.npy": codes, "json": json.dumps(fields).encode()}
    entry["crc32"] = checksum(codes)
    return {"emu3.npy": codes, "json": dump_with_checksum(fields)}


def list_with_tarfile(folder: Path) -> None:
    """The least that a library does for an index: walk the headers and parse the JSON."""
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as archive:
            for info in archive:
                if info.name.endswith(".json"):
                    json.loads(archive.extractfile(info).read())


def cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(variants: dict[str, Callable[[], object]], rounds: int, samples: int) -> None:
    best = {name: (float("inf"), float("inf")) for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            cpu, wall = cpu_seconds(), time.perf_counter()
            run()
            cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
            best[name] = min(best[name][0], cpu), min(best[name][1], wall)
    for name, (cpu, wall) in best.items():
        print(
            f"{name:44}  {cpu / samples * 1e6:6.0f} CPU us/sample  {samples / wall:8.0f} samples/s"
        )


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    sealed = write_folder(options.folder / "checksums", options, True)
    plain = write_folder(options.folder / "plain", options, False)
    indexes = {folder: open_index(folder, options.folder / "cache") for folder in (sealed, plain)}
    numbers = np.random.default_rng(1).permutation(len(indexes[sealed]))

    def walk(num_workers: int) -> None:
        list(map_in_processes(walk_shard, list_shards(sealed), num_workers, "index", "shards"))

    def verify(num_workers: int) -> None:
        verify_folder(str(sealed), VerifyOptions((str(sealed),), num_workers=num_workers))

    def read(folder: Path) -> None:
        for number in numbers:
            indexes[folder].read(int(number), CODEBOOK_SIZE)

    several = options.num_workers
    variants: dict[str, Callable[[], object]] = {
        "tarfile and json alone": lambda: list_with_tarfile(sealed),
        "index, 1 process": lambda: walk(1),
        f"index, {several} processes": lambda: walk(several),
        "verify, 1 process": lambda: verify(1),
        f"verify, {several} processes": lambda: verify(several),
        "read at random, checksums": lambda: read(sealed),
        "read at random, no checksums": lambda: read(plain),
    }
    measure(variants, options.rounds, len(numbers))


if __name__ == "__main__":
    main()
