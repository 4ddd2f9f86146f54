"""Memory of a process that reads many samples, with and without workers: it should stay flat.

Writes small samples, reads them step by step in a process of its own, and adds up the
proportional set size (PSS) of that process and of its workers, in which pages they share count
once. Mapped files are left out: their share changes with every other program that maps the same
libraries. Before it, the tokens of all samples are counted, by one process and by two.

    python benchmarks/loader_memory.py --folder DIR [--samples 100000]
"""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset

from megatron_aia.cli import one_line_errors
from megatron_aia.config.files import with_values
from megatron_aia.config.flags import parse_options
from megatron_aia.data.lengths import token_lengths
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.open import build_step_loader
from megatron_aia.data.prefetch import Prefetcher
from megatron_aia.models import load_model_spec, preset_table

BATCH = 256
POINTS = 25
CODEBOOK_SIZE = 512
FIGURE = Path(__file__).with_suffix(".png")


@dataclass
class Options:
    folder: Path
    """Gets the shards; those of an earlier call are taken as they are."""
    samples: int = 100_000
    """To write and to read, half of them generation and half understanding."""
    figure: Path = FIGURE
    workers: int | None = None
    """Read with this many workers and print what was measured; unset, do so for 0 and 2."""


class ByteTokenizer:
    vocab_size = 256
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def special_id(self, name: str) -> int:
        raise KeyError(name)


def write_samples(folder: Path, count: int, per_shard: int = 10_000) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    pattern = str(folder / "shard-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
        for number in range(count):
            task = ("generation", "understanding")[number % 2]
            values = ("a picture", "<image>") if number % 2 == 0 else ("<image>what?", "an answer")
            turns = zip(("human", "gpt"), values, strict=True)
            description = {
                "task": task,
                "conversations": [{"from": role, "value": value} for role, value in turns],
                "codes": [{"member": "emu3.npy", "height": 4, "width": 4}],
            }
            codes = rng.integers(0, CODEBOOK_SIZE, (4, 4)).astype(np.uint16)
            text = json.dumps(description).encode()
            writer.write({"__key__": f"{number:09d}", "json": text, "emu3.npy": codes})


def pss_megabytes() -> float:
    """Return the PSS, without mapped files, of this process and of its children."""
    processes = [os.getpid(), *(c.pid for c in multiprocessing.active_children() if c.pid)]
    texts = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in processes]
    found = re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", "".join(texts), re.MULTILINE)
    return sum(map(int, found)) / 1024


def open_batches(folder: Path) -> StepLoader:
    settings = {
        "data_path": (str(folder),),
        "global_batch_size": BATCH,
        "seq_length": 1024,
        "text_vocab_size": 256,
        "codebook_size": CODEBOOK_SIZE,
    }
    config = with_values(preset_table()["emu3_demo"].build(), settings)
    spec = load_model_spec("emu3")
    return build_step_loader(config, spec.encoder(config, ByteTokenizer()))


def count_tokens(folder: Path) -> None:
    """Print how fast the table of lengths is made."""
    batches = open_batches(folder)
    (index,) = batches.mixture.indexes
    for num_workers in (1, 2, 1, 2):
        wall, cpu = time.perf_counter(), time.process_time()
        for kept in index.cache.glob("lengths-*.npy"):
            kept.unlink()
        token_lengths(index, batches.encoder, CODEBOOK_SIZE, num_workers)
        rate = len(index) / (time.perf_counter() - wall)
        used = (time.process_time() - cpu) / len(index)
        note = f", {1e6 * used:.0f} us of CPU each" if num_workers == 1 else ""
        print(f"counting tokens, {num_workers} processes: {rate:.0f} samples/s{note}")


def read_all(options: Options) -> None:
    """Print (samples read, MB of PSS) as JSON lines, then samples a second."""
    assert options.workers is not None
    batches = open_batches(options.folder)
    batches.check()
    prefetcher = Prefetcher(batches, options.workers)
    every = max(options.samples // BATCH // POINTS, 1)
    start = time.perf_counter()
    for step in range(options.samples // BATCH):
        prefetcher.step(step * BATCH)
        if step % every == 0 or step == options.samples // BATCH - 1:
            print(json.dumps([(step + 1) * BATCH, pss_megabytes()]), flush=True)
    print(json.dumps(options.samples / (time.perf_counter() - start)))
    prefetcher.close()


def measure(options: Options, workers: int) -> tuple[np.ndarray, float]:
    arguments = ["--folder", options.folder, "--samples", options.samples, "--workers", workers]
    command = [sys.executable, __file__, *map(str, arguments)]
    lines = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    values = [json.loads(line) for line in lines.splitlines() if line[:1] in "[0123456789"]
    return np.array(values[:-1]), values[-1]


def draw(curves: dict[int, np.ndarray], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for workers, curve in curves.items():
        axes.plot(curve[:, 0], curve[:, 1], label=f"{workers} workers")
    axes.set(xlabel="samples read", ylabel="PSS of all processes, MB", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    if options.workers is not None:
        read_all(options)
        return
    if not options.folder.exists():
        write_samples(options.folder, options.samples)
    count_tokens(options.folder)
    curves = {}
    for workers in (0, 2):
        curves[workers], rate = measure(options, workers)
        quarter = len(curves[workers]) // 4
        print(
            f"{workers} workers: {curves[workers][quarter, 1]:.0f} MB after a quarter, "
            f"{curves[workers][-1, 1]:.0f} MB at the end, {rate:.0f} samples/s"
        )
    draw(curves, options.figure)


if __name__ == "__main__":
    main()
