"""Checkpoints of tiny runs with all that is needed to draw and answer, and tools run on them."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_aia.shards.folder import CODEBOOK_FILE
from megatron_aia.shards.patch_quantizer import PatchQuantizer
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn
from support.tiny_data import CODEBOOK_SIZE, JANUS_GRID
from support.tools import Result, run_tool

EMU3_AREA = 3 * 4 * 8 * 8
"""Pixels of 3 x 4 codes."""


def write_codebook(folder: Path, family: str) -> None:
    """Write a codebook of gray squares of 8 pixels."""
    grays = np.linspace(0, 255, CODEBOOK_SIZE).astype(np.uint8)
    squares = np.broadcast_to(grays[:, None, None, None], (CODEBOOK_SIZE, 8, 8, 3)).copy()
    is_square = family == "janus_pro"
    area = (8 * JANUS_GRID) ** 2 if is_square else EMU3_AREA
    PatchQuantizer(squares, area, is_square).save(folder / CODEBOOK_FILE)


def tiny_run(root: Path, family: str, **settings: Any) -> Path:
    """Train a model for one step on data with a codebook beside it; return the run's folder."""
    data = write_dataset(root / "data", family)
    write_codebook(data, family)
    config = run_config(data, Layout(family=family), train_iters=1, save=str(root / "run"))
    spawn(train, 1, replace(config, **settings))
    return root / "run"


def _on_each_rank(name: str, arguments: tuple[object, ...], world_size: int) -> Result:
    import torch.distributed as dist

    os.environ["WORLD_SIZE"], os.environ["RANK"] = str(world_size), str(dist.get_rank())
    return run_tool(name, *arguments)


def run_tool_on(world_size: int, name: str, *arguments: object) -> Result:
    """Run a tool as torchrun would; return what rank 0 said."""
    return spawn(_on_each_rank, world_size, name, arguments, world_size)
