"""Janus-Pro learns a few images by heart and draws them again: labels, heads and codes agree."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn

from megatron_aia.aia.roles import Task
from megatron_aia.analysis.redraw import redraw
from megatron_aia.config import Config

STEPS = 80


def memory_config(data: Path, save: Path) -> Config:
    config = run_config(data, Layout(family="janus_pro", micro_batch_size=2), STEPS, save=str(save))
    return replace(
        config,
        data=replace(config.data, task_ratio="1:1", cfg_drop_prob=0.0, global_batch_size=16),
        training=replace(config.training, lr=1e-2, min_lr=1e-3, lr_decay_iters=STEPS),
    )


def test_images_are_learned_and_drawn_again(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", "janus_pro")
    records = spawn(train, 1, memory_config(data, tmp_path / "run"))
    first, last = (record.losses["ntp"] for record in (records[0], records[-1]))
    assert first[Task.GENERATION] > 3  # of log(24) nats, drawing blindly
    assert last[Task.GENERATION] < 0.1
    assert last[Task.UNDERSTANDING] < first[Task.UNDERSTANDING] / 4
    redrawn = spawn(redraw, 1, tmp_path / "run", data)
    assert redrawn.agreement == 1.0
    assert len(np.unique(redrawn.codes)) > 1
