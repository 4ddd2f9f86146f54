"""Checkpoints go between norms that keep a state beside their weight and norms that do not.

Transformer Engine's RMSNorm is an operator, which has an extra state of no bytes. A norm with such
a state takes its place here.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn

from megatron_aia.config import Config
from megatron_aia.models import backbone, layers
from megatron_aia.models.norm import RMSNorm

PP = {"pipeline_model_parallel_size": 2}


class NormWithState(RMSNorm):
    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        assert state is not None


def train_with_state(config: Config) -> Any:
    original = layers.layer_specs

    def with_state(*args: Any) -> Any:
        specs = original(*args)
        specs.layer_norm = NormWithState
        return specs

    backbone.layer_specs = with_state
    return train(config)


def test_both_ways(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")

    def config(iterations: int, **folders: str) -> Config:
        return run_config(data, Layout(PP), iterations, **folders)

    plain, stateful = str(tmp_path / "plain"), str(tmp_path / "stateful")
    spawn(train, 2, config(2, save=plain))
    spawn(train_with_state, 2, config(2, save=stateful))
    there = spawn(train_with_state, 2, config(3, load=plain, save=str(tmp_path / "there")))
    back = spawn(train, 2, config(3, load=stateful, save=str(tmp_path / "back")))
    assert there[-1].iteration == back[-1].iteration == 3
    assert there[-1].terms == back[-1].terms and there[-1].grad_norm == back[-1].grad_norm


def test_a_checkpoint_that_does_not_load_says_why(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    config = run_config(data, Layout(), 1, save=str(tmp_path / "run"))
    spawn(train, 1, config)
    (tmp_path / "run/iter_0000001/.metadata").unlink()
    resume = replace(config, checkpoint=replace(config.checkpoint, load=str(tmp_path / "run")))
    assert ".metadata is missing" in spawn(error_of, 1, resume)


def error_of(config: Config) -> str:
    with pytest.raises(ValueError, match="is missing") as caught:
        train(config)
    return str(caught.value)
