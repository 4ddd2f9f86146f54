"""Three million samples: index, mixture, plan of a step, and reading beside webdataset's pipeline.

Shards of tiny samples (a prompt and a 2 x 2 image, 2 KB) are written first and removed afterwards.
There are fewer of them than the index has samples: most of its shards are links to others. Every
part runs in a process of its own, so that memory is that of the part alone:

    python benchmarks/mixture_3m.py [--samples 3000000] [--written 100000] [--folder my_data]
"""

import importlib.util
import io
import json
import multiprocessing
import os
import random
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import energon_reader
import numpy as np
import webdataset

from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options
from megatron_aia.config.tree import Config, DataConfig
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.mixture import Mixture
from megatron_aia.data.open import build_step_loader, open_mixture
from megatron_aia.data.sample import SampleEncoder, TokenizedSample
from megatron_aia.data.targets import NEXT_TOKEN, next_token_target
from megatron_aia.shards.cache import cache_folder
from megatron_aia.shards.folder import list_shards
from megatron_aia.shards.index import ShardIndex, open_index, save_index
from megatron_aia.shards.raw_sample import RawSample
from megatron_aia.shards.table import SampleTable

PER_SHARD = 5000
CODEBOOK_SIZE = 100
SEED = 1234


@dataclass
class Options:
    samples: int = 3_000_000
    """Of the large index."""
    written: int = 100_000
    """Samples that are written, indexed and read; a part of ``samples``."""
    folder: Path = Path("my_data/mixture_3m")
    """Where the shards are written; it must not exist."""
    read: int = 20_000
    """Samples that each reader reads in a round."""
    rounds: int = 3
    """Rounds of reading, the readers in turn."""


class TextAndCodes(SampleEncoder):
    """Bytes of the text, then the codes."""

    fingerprint = "benchmark"
    pad_id = 0

    def __call__(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        text = "".join(turn.text for turn in sample.turns).encode()
        parts = [np.frombuffer(text, np.uint8), *(codes.ravel() for codes in sample.codes)]
        tokens = np.concatenate(parts).astype(np.int64)
        weights, roles = np.ones(len(tokens), np.float32), np.zeros(len(tokens), np.uint8)
        weights[0] = 0
        return TokenizedSample(
            sample.key,
            sample.task,
            tokens,
            roles,
            {NEXT_TOKEN: next_token_target(tokens, weights)},
        )

    def dry_run(self, sample: RawSample) -> TokenizedSample:
        return self(sample, drop_prompt=False)


def write_shards(small: Path, samples: int) -> None:
    """Write one shard with tarfile and the others as copies whose keys name their shard."""
    drawing, asking = small / "drawing", small / "asking"
    template = np.frombuffer(one_shard(), np.uint8)
    blocks = template[: len(template) // 512 * 512].reshape(-1, 512)
    headers = np.flatnonzero(blocks[:, 257] == ord("u"))  # "ustar", in every header and no content
    for number in range(samples // PER_SHARD):
        folder = drawing if number % 2 else asking
        folder.mkdir(parents=True, exist_ok=True)
        shard = blocks.copy()
        digits = np.frombuffer(f"{number:05d}".encode(), np.uint8)
        shard[headers, 1:6] = digits
        # The checksum counts its own eight characters as blanks.
        sums = shard[headers].sum(axis=1, dtype=np.int64)
        sums += 8 * ord(" ") - shard[headers, 148:156].sum(axis=1, dtype=np.int64)
        for place in range(6):
            shard[headers, 148 + place] = ord("0") + (sums >> (3 * (5 - place))) % 8
        (folder / f"shard-{number:06d}.tar").write_bytes(shard.tobytes())


def enlarge(small: Path, large: Path, times: int) -> None:
    """Make a folder with links to the shards of ``small``, many to each, and the index of all."""
    large.mkdir(parents=True)
    part = open_index(small)
    for number in range(times * len(part.shards)):
        target = sorted(small.glob("*.tar"))[number % len(part.shards)]
        (large / f"shard-{number:06d}.tar").symlink_to(target.resolve())
    table = part.table

    def ends(starts: np.ndarray) -> np.ndarray:
        return np.concatenate([[0], *(starts[1:] + i * starts[-1] for i in range(times))])

    whole = SampleTable(
        tasks=np.tile(table.tasks, times),
        shard_numbers=np.concatenate(
            [table.shard_numbers + np.int32(i * len(part.shards)) for i in range(times)]
        ),
        member_starts=ends(table.member_starts),
        member_offsets=np.tile(table.member_offsets, times),
        member_sizes=np.tile(table.member_sizes, times),
        member_is_picture=np.tile(table.member_is_picture, times),
        key_starts=ends(table.key_starts),
        keys=np.tile(table.keys, times),
    )
    save_index(ShardIndex(str(large), list_shards(large), whole, "large", cache_folder(large)))


def one_shard() -> bytes:
    file, codes = io.BytesIO(), io.BytesIO()
    np.save(codes, np.arange(4, dtype=np.uint16).reshape(2, 2))
    turns = [{"from": "human", "value": "Draw a lake."}, {"from": "gpt", "value": "<image>"}]
    entry = {"member": "emu3.npy", "height": 2, "width": 2}
    sample = {"task": "generation", "conversations": turns, "codes": [entry]}
    members = (("json", json.dumps(sample).encode()), ("emu3.npy", codes.getvalue()))
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(PER_SHARD):
            for suffix, data in members:
                info = tarfile.TarInfo(f"s00000x{number:04d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what ``function`` returns in a fresh process."""
    # A worker of multiprocessing's own pool may not start workers of its own.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@dataclass
class Seconds:
    wall: float
    cpu: float
    """Of this process and of those that it waited for: what a busy machine does not change."""

    def __str__(self) -> str:
        return f"{self.wall:.2f} s (CPU {self.cpu:.2f} s)"

    def each(self, count: int) -> str:
        """Return the share of one of ``count`` as text."""
        return f"{self.wall / count * 1e6:.0f} us (CPU {self.cpu / count * 1e6:.0f} us)"


def timed(action: Callable[[], Any]) -> tuple[Seconds, Any]:
    wall, before = time.perf_counter(), os.times()
    result = action()
    after = os.times()
    cpu = sum(after[:4]) - sum(before[:4])
    return Seconds(time.perf_counter() - wall, cpu), result


class Memory:
    """Growth of this process's resident memory from here on, at its height (Linux)."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the height starts anew
        self._before = self._height()

    def __str__(self) -> str:
        return f"{(self._height() - self._before) / 1024:.0f} MB"

    @staticmethod
    def _height() -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def open_all(folder: Path) -> list[str]:
    """Open both indexes: built the first time, read from their files later."""
    memory = Memory()
    seconds, indexes = timed(lambda: [open_index(path) for path in sorted(folder.iterdir())])
    samples = sum(map(len, indexes))
    return [f"{samples} samples, {seconds}, {memory}"]


def mixture_of(folder: Path, window: int = 0) -> Mixture:
    blend = ("2", str(folder / "drawing"), "1", str(folder / "asking"))
    return open_mixture(
        DataConfig(data_path=blend, shuffle_window_shards=window), SEED, CODEBOOK_SIZE
    )


def locate(folder: Path) -> list[str]:
    """Time positions that a run visits one after the other, and positions all over it."""
    lines = []
    rng = random.Random(0)
    for window in (0, 8):
        mixture = mixture_of(folder, window)
        for name, positions in (
            ("in order", range(29_000_000, 29_050_000)),
            ("anywhere", [rng.randrange(10**9) for _ in range(2000)]),
        ):
            seconds, _ = timed(lambda m=mixture, p=positions: [m.locate(i) for i in p])
            shuffle = f"windows of {window} shards" if window else "whole source"
            lines.append(f"{shuffle}, {name}: {seconds.each(len(positions))}")
    return lines


def batches_of(folder: Path) -> StepLoader:
    config = Config()
    config.data = replace(
        config.data,
        data_path=("2", str(folder / "drawing"), "1", str(folder / "asking")),
        seq_length=4096,
        global_batch_size=256,
    )
    config.model.codebook_size = CODEBOOK_SIZE
    loader = build_step_loader(config, TextAndCodes(), data_size=8)
    # Counting tokens is another benchmark's; here they are drawn. The real ones are shorter.
    rng = np.random.default_rng(0)
    loader.__dict__["_lengths"] = tuple(
        rng.integers(300, 1500, len(index)).astype(np.int32) for index in loader.mixture.indexes
    )
    return loader


def first_batch(folder: Path) -> list[str]:
    """Time from nothing open to the first and to later micro-batches of one of 8 ranks."""
    memory = Memory()
    opened, loader = timed(lambda: batches_of(folder))
    first, _ = timed(lambda: loader.step(29_000_000))
    plan, _ = timed(lambda: [loader.plan(256 * step) for step in range(20)])
    steps, _ = timed(lambda: [loader.step(256 * step) for step in range(20)])
    return [
        f"opening {opened}, then the first step at position 29,000,000 {first}",
        f"plan of 256 samples {plan.each(20)}, with a rank's share of them read and laid out "
        f"{steps.each(20)}",
        f"{memory} beside the libraries",
    ]


def read_own(folder: Path, count: int, window: int, start: int) -> Seconds:
    """Locate, read and check JSON and codes, in the order of a run."""
    mixture = mixture_of(folder, window)
    mixture.locate(start)

    def read() -> None:
        for position in range(start, start + count):
            address = mixture.locate(position)
            mixture.indexes[address.index_number].read(address.sample_number, CODEBOOK_SIZE)

    return timed(read)[0]


def read_webdataset(folder: Path, count: int, seed: int) -> Seconds:
    """Stream: shuffled shards, a buffer of 1000 samples, mixed sources."""
    pipelines = [
        webdataset.WebDataset(
            [str(path) for path in sorted((folder / name).glob("*.tar"))],
            shardshuffle=100,
            seed=seed,
        )
        .shuffle(1000, seed=seed)
        .map(decode)
        for name in ("drawing", "asking")
    ]
    samples: Iterator[Any] = iter(webdataset.RandomMix(pipelines, probs=[2, 1], longest=True))
    next(samples)

    def read() -> None:
        for _ in range(count):
            next(samples)

    return timed(read)[0]


def read_energon(folder: Path, count: int) -> Seconds:
    """Stream as energon does, with its mixture of the same folders."""
    samples = energon_reader.samples(folder)
    next(samples)

    def read() -> None:
        for _ in range(count):
            next(samples)

    return timed(read)[0]


def decode(sample: dict[str, bytes]) -> tuple[Any, np.ndarray]:
    """Decode what the own reader decodes, without its checks."""
    codes = np.lib.format.read_array(io.BytesIO(sample["emu3.npy"]), allow_pickle=False)
    return json.loads(sample["json"]), codes.astype(np.int64)


def compare_reading(folder: Path, options: Options) -> None:
    """Let the readers read in turns, and print what each needed."""
    found: dict[str, list[Seconds]] = {}
    has_energon = importlib.util.find_spec("megatron.energon") is not None
    if has_energon:
        energon_reader.prepare(folder)
    for number in range(options.rounds):
        start = 1_000_000 * number
        readers: list[tuple[str, Callable[..., Seconds], tuple[int, ...]]] = [
            ("own, whole source", read_own, (options.read, 0, start)),
            ("own, windows of 8 shards", read_own, (options.read, 8, start)),
            ("webdataset", read_webdataset, (options.read, number)),
        ]
        if has_energon:
            readers.append(("megatron-energon", read_energon, (options.read,)))
        for name, part, arguments in readers:
            found.setdefault(name, []).append(in_process(part, folder, *arguments))
    for name, times in found.items():
        rates = ", ".join(f"{options.read / each.wall:,.0f}" for each in times)
        least = min(each.cpu for each in times) / options.read * 1e6
        print(f"{name}: {rates} samples/s; least CPU {least:.0f} us a sample")


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    small, large = options.folder / "small", options.folder / "large"
    options.folder.mkdir(parents=True)
    try:
        write_shards(small, options.written)
        for line in in_process(open_all, small):
            print(f"small index, built: {line}", flush=True)
        for name in ("drawing", "asking"):
            enlarge(small / name, large / name, options.samples // options.written)
        parts = (("opened", open_all), ("locate", locate), ("loader", first_batch))
        for title, part in parts:
            for line in in_process(part, large):
                print(f"large index, {title}: {line}", flush=True)
        compare_reading(small, options)
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
