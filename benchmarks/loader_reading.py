"""Who reads the samples of a tensor-parallel group: every rank, or one that sends them on?

Two gloo ranks that need the same micro-batches of Janus-Pro, half of whose samples are JPEG
pictures to decode. Side by side in one run, without workers, so that nothing hides behind a step:

    python benchmarks/loader_reading.py --folder DIR [--steps 20]
"""

import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import webdataset

from megatron_aia.cli import one_line_errors
from megatron_aia.config.files import with_values
from megatron_aia.config.flags import parse_options
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.open import build_step_loader
from megatron_aia.models import load_model_spec, preset_table
from megatron_aia.models.janus_pro.special_tokens import NAMES

SAMPLES = 400
BATCH = 32
IMAGE_SIZE, GRID = 384, 24
CODEBOOK_SIZE = 16_384
TEXT_VOCAB_SIZE = 512


@dataclass
class Options:
    folder: Path
    """Gets the shards; those of an earlier call are taken as they are."""
    steps: int = 20


class ByteTokenizer:
    vocab_size = 256
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def special_id(self, name: str) -> int:
        return 256 + list(NAMES.values()).index(name)


def jpeg(rng: np.random.Generator) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    small = Image.fromarray(rng.integers(0, 256, (60, 80, 3)).astype(np.uint8))
    small.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_samples(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    with webdataset.TarWriter(str(folder / "shard-000000.tar")) as writer:
        for number in range(SAMPLES):
            draws = number % 2 == 0
            values = ("a cat", "<image>") if draws else ("<image>what is it?", "a cat " * 40)
            turns = zip(("human", "gpt"), values, strict=True)
            codes = {"member": "janus.npy", "height": GRID, "width": GRID}
            description = {
                "task": "generation" if draws else "understanding",
                "conversations": [{"from": role, "value": value} for role, value in turns],
                "codes": [codes] if draws else [],
                "images": [] if draws else [{"member": "jpg"}],
            }
            sample = {"__key__": f"{number:09d}", "json": json.dumps(description).encode()}
            if draws:
                sample["janus.npy"] = rng.integers(0, CODEBOOK_SIZE, (GRID, GRID)).astype(np.uint16)
            else:
                sample["jpg"] = jpeg(rng)
            writer.write(sample)


def open_batches(folder: Path) -> StepLoader:
    settings = {
        "data_path": (str(folder),),
        "global_batch_size": BATCH,
        "seq_length": 8192,
        "text_vocab_size": TEXT_VOCAB_SIZE,
        "codebook_size": CODEBOOK_SIZE,
        "image_size": IMAGE_SIZE,
        "patch_size": 16,
    }
    config = with_values(preset_table()["janus_pro_7b"].build(), settings)
    spec = load_model_spec("janus_pro")
    return build_step_loader(config, spec.encoder(config, ByteTokenizer()))


def read_and_send(batches: StepLoader, position: int) -> list[MicroBatch]:
    """Let rank 0 read a step and send it; tensors travel as they are."""
    holder = [batches.step(position) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(holder, src=0)
    assert holder[0] is not None
    return holder[0]


def measure(read: Callable[[int], list[MicroBatch]], steps: int) -> torch.Tensor:
    """Return (wall seconds of the slowest rank, CPU seconds of both ranks) a step."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(steps):
        read(step * BATCH)
        dist.barrier()  # a step begins when both have it
    wall_used = torch.tensor(time.perf_counter() - wall)
    cpu_used = torch.tensor(time.process_time() - cpu)
    dist.all_reduce(wall_used, dist.ReduceOp.MAX)
    dist.all_reduce(cpu_used)
    return torch.stack([wall_used, cpu_used]) / steps


def run_rank(rank: int, options: Options, rendezvous: str) -> None:
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    batches = open_batches(options.folder)
    batches.check()
    ways = {
        "every rank reads": batches.step,
        "one rank reads and sends": lambda position: read_and_send(batches, position),
    }
    for repeat in range(3):
        for name, read in ways.items():
            wall, cpu = measure(read, options.steps).tolist()
            if rank == 0:
                print(
                    f"{repeat}: {name}: {1000 * wall:.0f} ms a step until both ranks have it, "
                    f"{1000 * cpu:.0f} ms of CPU on both together",
                    flush=True,
                )
    dist.destroy_process_group()


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    if not options.folder.exists():
        write_samples(options.folder)
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(run_rank, (options, f"{folder}/store"), nprocs=2, start_method="fork")


if __name__ == "__main__":
    main()
