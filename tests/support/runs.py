"""Whole runs of the trainer on a few made-up samples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_aia.analysis.records import LogRecord, read_records
from megatron_aia.building.demo.training import train_sentencepiece
from megatron_aia.config import Config
from megatron_aia.runtime.parallel import destroy_parallel
from megatron_aia.training.trainer import Trainer
from support.layouts import Layout, tiny_config
from support.tiny_data import SPECIAL_TOKENS_OF, write_shards

VOCAB_SIZE = 311


def write_dataset(folder: Path, family: str = "emu3") -> Path:
    """Write shards with a tokeniser beside them, as tools/build_shards.py does."""
    write_shards(folder, family=family)
    write_tokenizer(folder, family)
    return folder


def write_tokenizer(folder: Path, family: str) -> None:
    """Write a text tokeniser of ``VOCAB_SIZE`` ids, special tokens of the family included."""
    words = [
        "abc def fed cba a b c d e f",
        "You are a helpful assistant. USER: ASSISTANT: 0123456789*",
    ]
    special = tuple(SPECIAL_TOKENS_OF.get(family, ()))
    train_sentencepiece(words * 20, folder / "tokenizer.model", VOCAB_SIZE, special)


def run_config(data: Path, layout: Layout, train_iters: int, **checkpoint: Any) -> Config:
    """Return a run that logs every step."""
    config = tiny_config(
        data, layout, train_iters=train_iters, lr_warmup_iters=1, lr_decay_iters=20
    )
    return replace(
        config,
        model=replace(config.model, text_vocab_size=VOCAB_SIZE),
        checkpoint=replace(config.checkpoint, **checkpoint),
        logging=replace(config.logging, log_interval=1),
    )


def train(config: Config) -> list[LogRecord]:
    """Run the trainer on this rank; return the records rank 0 wrote."""
    trainer = Trainer(config)
    trainer.run()
    records = []
    if dist.get_rank() == 0 and config.checkpoint.save:
        records = read_records(Path(config.checkpoint.save))
    del trainer
    destroy_parallel()
    return records


def train_all(configs: dict[str, Config]) -> dict[str, list[LogRecord]]:
    """Run several configurations of this world, one after the other."""
    return {name: train(config) for name, config in configs.items()}
