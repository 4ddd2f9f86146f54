"""A checkpoint that finds no room says so, and leaves the older ones whole."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn

from megatron_aia.checkpoint import io, writing
from megatron_aia.checkpoint.choose import choose_checkpoint
from megatron_aia.checkpoint.pending import CheckpointWriteError
from megatron_aia.config import Config
from megatron_aia.training.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("run")
    config = run_config(
        write_dataset(root / "data"), Layout(), 2, save=str(root / "run"), load=str(root / "run")
    )
    spawn(train, 2, config)
    return replace(config, training=replace(config.training, train_iters=3))


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


def torn(*args: Any, **kwargs: Any) -> None:
    """As torch's writer says it."""
    raise RuntimeError("Worker failure: [enforce fail at inline_container.cc:672] . unexpected pos")


PLACES: dict[str, Any] = {
    "plan_save": writing,
    "sum_files_of_rank": writing,
    "write_state": io,
    "_fresh_folder": io,
}


def fail(config: Config, name: str, function: Callable[..., None]) -> str:
    owner = PLACES[name]
    original = getattr(owner, name)
    trainer = Trainer(config)
    setattr(owner, name, function)
    with pytest.raises(CheckpointWriteError) as caught:
        trainer.run()
    setattr(owner, name, original)
    return str(caught.value)


@pytest.mark.parametrize("async_save", [False, True])
@pytest.mark.parametrize(
    ("name", "function", "said"),
    [
        ("plan_save", torn, "Worker failure"),
        ("plan_save", no_space, "No space left on device"),
        ("write_state", no_space, "publishing it: [Errno 28] No space left on device"),
        ("_fresh_folder", no_space, "making its folder: [Errno 28] No space left on device"),
        ("sum_files_of_rank", no_space, "No space left on device"),
    ],
)
def test_where_it_fails_and_what_is_left(
    run: Config, name: str, function: Callable[..., None], said: str, async_save: bool
) -> None:
    config = replace(run, checkpoint=replace(run.checkpoint, async_save=async_save))
    said_by_run = spawn(fail, 2, config, name, function)
    assert "iter_0000003 cannot be written: " in said_by_run
    assert said in said_by_run
    assert " GB are free, iter_0000002 takes 0.0" in said_by_run
    folder = Path(run.checkpoint.save or "")
    assert choose_checkpoint(folder).name == "iter_0000002"


def test_the_next_run_goes_on_and_leaves_nothing_behind(run: Config) -> None:
    spawn(train, 2, run)
    folder = Path(run.checkpoint.save or "")
    assert choose_checkpoint(folder).name == "iter_0000003"
    assert not list(folder.glob(".iter_*"))
