"""Memory and open files of a process that reads for long: both should stay flat.

Reads a mixture of two folders, 2 to 1: 60,000 samples in 60 shards, and 40,000 in 10,000 shards of
four. Unlike ``loader_memory.py`` it goes through the epochs of both many times, and watches the
main process and its workers apart.

    python benchmarks/loader_soak.py --folder DIR [--minutes 30]
"""

import json
import multiprocessing
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loader_memory import ByteTokenizer, write_samples

from megatron_aia.cli import one_line_errors
from megatron_aia.config.files import with_values
from megatron_aia.config.flags import parse_options
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.open import build_step_loader
from megatron_aia.data.prefetch import Prefetcher
from megatron_aia.models import load_model_spec, preset_table

BATCH = 64
FOLDERS = {"large": (2, 60_000, 1000), "small": (1, 40_000, 4)}
"""Weight, samples and samples of a shard."""
SECONDS_A_POINT = 15.0
FIGURE = Path(__file__).with_suffix(".png")


@dataclass
class Options:
    folder: Path
    """Gets the shards; those of an earlier call are taken as they are."""
    minutes: float = 30.0
    """To read for."""
    workers: int = 2
    """Processes that read."""
    output: Path = Path("loader_soak.jsonl")
    """A line for every 15 seconds."""
    figure: Path = FIGURE


def anonymous_megabytes(process: int) -> float:
    """Return the PSS, without mapped files, of a process."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", text, re.M))) / 1024


def look(start: float, samples: int) -> dict[str, float]:
    workers = [child.pid for child in multiprocessing.active_children() if child.pid]
    return {
        "minutes": (time.monotonic() - start) / 60,
        "samples": samples,
        "main_mb": anonymous_megabytes(os.getpid()),
        "workers_mb": sum(map(anonymous_megabytes, workers)),
        "open_files": len(os.listdir("/proc/self/fd")),
        "shared_memory_files": len(os.listdir("/dev/shm")),
    }


def open_batches(folder: Path) -> StepLoader:
    paths = [(str(weight), str(folder / name)) for name, (weight, *_) in FOLDERS.items()]
    settings = {
        "data_path": tuple(word for pair in paths for word in pair),
        "global_batch_size": BATCH,
        "seq_length": 1024,
        "text_vocab_size": 256,
        "codebook_size": 512,
    }
    config = with_values(preset_table()["emu3_demo"].build(), settings)
    return build_step_loader(config, load_model_spec("emu3").encoder(config, ByteTokenizer()))


def read(options: Options) -> list[dict[str, float]]:
    batches = open_batches(options.folder)
    batches.check()
    prefetcher = Prefetcher(batches, options.workers)
    points: list[dict[str, float]] = []
    start = time.monotonic()
    position = 0
    with options.output.open("w") as stream:
        while time.monotonic() - start < 60 * options.minutes:
            prefetcher.step(position)
            position += BATCH
            if time.monotonic() - start >= SECONDS_A_POINT * len(points):
                points.append(look(start, position))
                stream.write(json.dumps(points[-1]) + "\n")
                stream.flush()
    prefetcher.close()
    return points


def draw(points: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    minutes = [point["minutes"] for point in points]
    for name, label in (("main_mb", "main process"), ("workers_mb", "its workers together")):
        axes.plot(minutes, [point[name] for point in points], label=label)
    axes.set(xlabel="minutes", ylabel="PSS without mapped files, MB", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    for name, (_, count, per_shard) in FOLDERS.items():
        if not (options.folder / name).exists():
            write_samples(options.folder / name, count, per_shard)
    points = read(options)
    for part in np.array_split(np.arange(len(points)), 6):
        rows = [points[i] for i in part]
        names = ("main_mb", "workers_mb", "open_files")
        means = [np.mean([row[name] for row in rows]) for name in names]
        until, most = rows[-1]["minutes"], max(row["main_mb"] for row in rows)
        print(
            f"to minute {until:.0f}: {rows[-1]['samples']} samples, main process {means[0]:.0f} MB "
            f"(at most {most:.0f}), workers {means[1]:.0f} MB, {means[2]:.0f} open files"
        )
    draw(points, options.figure)


if __name__ == "__main__":
    main()
