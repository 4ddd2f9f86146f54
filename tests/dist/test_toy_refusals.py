"""What a family's terms and their teacher need is asked for in one line, on every rank alike."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from support.layouts import Layout
from support.runs import VOCAB_SIZE, run_config, train, write_dataset
from support.spawn import spawn
from support.toy_family import model

from megatron_aia import cli
from megatron_aia import train as command
from megatron_aia.config import Config
from megatron_aia.models import extra_family
from megatron_aia.models.losses import LossTerm
from megatron_aia.runtime.parallel import destroy_parallel

TOY_FAMILY = ("toy", "support.toy_family.family")
PRESETS = {"gpu_preset": "toy_demo", "cpu_preset": "toy_demo"}
CODEBOOK_SIZE = 24
FOLLOW = "--seq-length 96 --train-iters 1 --task-ratio 2:2:1:1 --global-batch-size 10"
SIZES = f"--text-vocab-size {VOCAB_SIZE} --pipeline-model-parallel-size 2"


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with extra_family(*TOY_FAMILY):
        yield


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = write_dataset(tmp_path_factory.mktemp("toy") / "data")
    return f"--data-path {data} {FOLLOW} {SIZES}".split()


@pytest.fixture(scope="module")
def teacher(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("teacher"))
    config = run_config(Path(arguments[1]), Layout(family="toy"), 1, save=folder)
    spawn(train, 1, replace(config, model=replace(config.model, teacher_loss_weight=0.0)))
    return folder


def lose_depth(config: Config) -> tuple[LossTerm, ...]:
    return (model.Regression("vec", "depth"),)


def run_commands(commands: dict[str, list[str]]) -> dict[str, list[Any]]:
    """Run command lines in this world; return exit code and standard error of every rank."""
    os.environ.update(RANK=str(dist.get_rank()), WORLD_SIZE=str(dist.get_world_size()))
    cli._SECONDS_FOR_RANK_0 = 0  # nobody ends these ranks
    found = {}
    for name, arguments in commands.items():
        said, code = io.StringIO(), None
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
            if name == "target":
                patch.setattr(model, "SPEC", replace(model.SPEC, losses=lose_depth))
            try:
                command.main(arguments, **PRESETS)
            except SystemExit as stop:
                code = stop.code
        destroy_parallel()
        found[name] = [None] * dist.get_world_size()
        dist.all_gather_object(found[name], (code, said.getvalue()))
    return found


def test_each_is_one_line(arguments: list[str], teacher: str, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    larger = ["--teacher-checkpoint", teacher, "--codebook-size", "40"]
    found = spawn(
        run_commands,
        2,
        {
            "nowhere": [*arguments, "--teacher-checkpoint", nowhere],
            "vocabulary": [*arguments, *larger],
            "unasked": [*arguments, *larger[:2], "--teacher-loss-weight", "0"],
            "target": arguments,
        },
    )
    words = {
        "nowhere": f"--teacher-checkpoint: {nowhere}",
        "vocabulary": f"its --codebook-size is {CODEBOOK_SIZE}",
        "unasked": "no loss term of --model toy asks for a teacher; leave it out",
        "target": "the loss term vec learns the target depth, and its samples have next_token",
    }
    for name, ((code, said), others) in found.items():
        assert (code, others) == (2, (2, "")), name
        (line,) = said.splitlines()
        assert line.startswith("error: ") and words[name] in line


def test_torchrun_ends_without_the_teacher(arguments: list[str], tmp_path: Path) -> None:
    script = tmp_path / "train_toy.py"
    script.write_text(
        "from megatron_aia import train\n"
        "from megatron_aia.models import extra_family\n"
        f"with extra_family{TOY_FAMILY}:\n"
        f"    train.main(**{PRESETS})\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", script, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    line = (
        "error: the loss term kl compares with a frozen teacher; name its checkpoint by "
        "--teacher-checkpoint"
    )
    assert line in result.stderr.splitlines()
    assert result.stderr.count("  exitcode  : 2 ") == 1
