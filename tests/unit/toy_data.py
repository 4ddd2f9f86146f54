"""Tiny shards and a prompt to read them with, for the tests of the data path."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from megatron_aia.aia.roles import Task, key_code, query_code
from megatron_aia.config import Config, DataConfig
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.open import build_step_loader
from megatron_aia.data.sample import SampleEncoder, TokenizedSample
from megatron_aia.data.targets import NEXT_TOKEN, next_token_target
from megatron_aia.shards.raw_sample import IMAGE_TAG, RawSample

CODEBOOK_SIZE = 100
FIRST_VISUAL = 1000
PAD = 7


def npy(codes: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, codes)
    return file.getvalue()


def toy_sample(key: str, task: str, human: str, gpt: str, shape: tuple[int, int] = (2, 3)) -> dict:
    """Return the members of a sample; codes are a function of the key."""
    tags = (human + gpt).count(IMAGE_TAG)
    suffixes = ["emu3.npy"] if tags == 1 else [f"{i}.emu3.npy" for i in range(tags)]
    seed = sum(map(ord, key))
    codes = (np.arange(shape[0] * shape[1]).reshape(shape) * 7 + seed) % CODEBOOK_SIZE
    description: dict[str, Any] = {
        "id": key,
        "task": task,
        "source": "toy",
        "license": "CC0",
        "conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}],
        "codes": [{"member": s, "height": shape[0], "width": shape[1]} for s in suffixes],
    }
    members = {suffix: npy(codes.astype(np.uint16)) for suffix in suffixes}
    return {"__key__": key, "json": description, **members}


def toy_samples(task: str, count: int, prefix: str = "") -> list[dict]:
    """Return samples of different lengths."""
    samples = []
    for i in range(count):
        words = "w" * (1 + i * 5 % 17)
        human, gpt = {
            "generation": (words, IMAGE_TAG),
            "understanding": (IMAGE_TAG + "what", words),
            "text": (words, words),
            "mixed": (IMAGE_TAG + words, words + IMAGE_TAG),
        }[task]
        samples.append(toy_sample(f"{prefix}{task}{i:03d}", task, human, gpt))
    return samples


def write_shard(path: Path, samples: Iterable[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for sample in samples:
            writer.write(
                {k: json.dumps(v).encode() if isinstance(v, dict) else v for k, v in sample.items()}
            )
    return path


def write_folder(folder: Path, samples: list[dict], samples_per_shard: int = 8) -> Path:
    for start in range(0, len(samples), samples_per_shard):
        name = f"part-{start // samples_per_shard:05d}.tar"
        write_shard(folder / name, samples[start : start + samples_per_shard])
    return folder


def member_ends(path: Path) -> list[tuple[str, int, int]]:
    """Return (name, offset of the content, offset of the next header) of every member."""
    with tarfile.open(path) as archive:
        infos = archive.getmembers()
    return [(i.name, i.offset_data, i.offset_data + -(-i.size // 512) * 512) for i in infos]


class ToyEncoder(SampleEncoder):
    """The ``SampleEncoder`` of a function that decodes no picture."""

    pad_id = PAD

    def __init__(
        self,
        write: Callable[[RawSample, bool], TokenizedSample],
        fingerprint: str = "toy",
        image_size: int = 0,
    ) -> None:
        self._write = write
        self.fingerprint = fingerprint
        self.image_size = image_size

    def __call__(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
        return self._write(sample, drop_prompt)

    def dry_run(self, sample: RawSample) -> TokenizedSample:
        return self._write(sample, False)


@ToyEncoder
def toy_encoder(sample: RawSample, drop_prompt: bool) -> TokenizedSample:
    """Write [1] and the turns: bytes as they are, codes from FIRST_VISUAL, [2] after each image."""
    codes = iter(sample.codes)
    parts: list[tuple[list[int], float, int]] = [([1], 0.0, key_code(Task.GENERATION))]
    for turn in sample.turns:
        answer = turn.role == "gpt"
        pieces = turn.text.split(IMAGE_TAG)
        for i, piece in enumerate(pieces):
            if i:
                image = (next(codes).ravel() + FIRST_VISUAL).tolist()
                role = query_code(Task.GENERATION) if answer else key_code(Task.UNDERSTANDING)
                parts += [(image, float(answer), role), ([2], 0.0, 0)]
            if not (drop_prompt and sample.task is Task.GENERATION):
                role = query_code(Task.UNDERSTANDING) if answer else key_code(Task.GENERATION)
                parts.append((list(piece.encode()), float(answer), role))
    roles = np.concatenate([np.full(len(ids), role, np.uint8) for ids, _, role in parts])
    if drop_prompt and sample.task is Task.GENERATION:
        roles[:] = 0
    tokens = np.concatenate([np.array(ids, np.int64) for ids, _, _ in parts])
    weights = np.concatenate([np.full(len(i), w, np.float32) for i, w, _ in parts])
    targets = {NEXT_TOKEN: next_token_target(tokens, weights)}
    return TokenizedSample(sample.key, sample.task, tokens, roles, targets)


def toy_batches(
    folder: Path, encoder: Any = toy_encoder, *, size: int = 1, rank: int = 0, **data: Any
) -> StepLoader:
    """Return the steps of a run on one folder, of 12 samples each in rows of 48 tokens."""
    config = Config()
    config.model.codebook_size = CODEBOOK_SIZE
    defaults = {"seq_length": 48, "global_batch_size": 12, "cfg_drop_prob": 0.3, "num_workers": 0}
    config.data = DataConfig(data_path=(str(folder),), **{**defaults, **data})
    return build_step_loader(config, encoder, data_rank=rank, data_size=size)
