"""The last stage of UniFork: a run for each branch, the rest frozen, and one checkpoint of both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn
from support.tools import Result, run_tool

from megatron_aia.checkpoint.choose import choose_checkpoint
from megatron_aia.checkpoint.run_state import CONFIG_FILE
from megatron_aia.checkpoint.single_process_model import SingleProcessModel
from megatron_aia.config import Config
from megatron_aia.models import load_family, read_run_config

SHARED = ("embedding.*", "code_projection.*", "markers.*", "decoder.layers.[01].*")
BRANCHES = load_family("unifork").branches
UNIFORK = Layout(family="unifork")


def parameters(path: Path) -> dict[str, torch.Tensor]:
    found = choose_checkpoint(path)
    with SingleProcessModel(read_run_config(str(found / CONFIG_FILE)).model) as weights:
        return weights.read(found)


def changed(before: Path, after: Path) -> set[str]:
    first, second = parameters(before), parameters(after)
    return {name for name, value in first.items() if not torch.equal(value, second[name])}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of both branches, and from it one of each branch on its own task."""
    root = tmp_path_factory.mktemp("runs")
    data = write_dataset(root / "data", "unifork")
    spawn(train, 1, run_config(data, UNIFORK, 2, save=str(root / "both")))
    for branch, ratio in (("understanding", "0:1:0:0"), ("generation", "1:0:0:0")):
        config = run_config(
            data, UNIFORK, 2, save=str(root / branch), load=str(root / "both"), finetune=True
        )
        spawn(train, 1, stage(config, branch, ratio))
    return {name: root / name for name in ("both", *BRANCHES)}


def stage(config: Config, branch: str, ratio: str) -> Config:
    (other,) = set(BRANCHES) - {branch}
    return replace(
        config,
        data=replace(config.data, task_ratio=ratio),
        training=replace(config.training, freeze=(*SHARED, *BRANCHES[other])),
    )


def merge(understanding: Path, generation: Path, save: Path, *flags: str) -> Result:
    folders = ("--understanding", understanding, "--generation", generation, "--save", save)
    return run_tool("merge_branches", *folders, *flags)


def compare(runs: dict[str, Path], merged: Path) -> Any:
    return {
        **{branch: changed(runs["both"], runs[branch]) for branch in BRANCHES},
        "merged": {branch: changed(runs[branch], merged) for branch in BRANCHES},
    }


def test_each_stage_trains_its_branch_and_one_checkpoint_has_both(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    code, out, err = spawn(merge, 1, runs["understanding"], runs["generation"], tmp_path / "one")
    assert code == 0, err
    assert "equal in both" in out
    found = spawn(compare, 1, runs, tmp_path / "one")
    understanding, generation = (found[branch] for branch in BRANCHES)
    assert all(".understanding." in name for name in understanding)
    assert all(".generation." in name or name.startswith("depth_head.") for name in generation)
    assert len(understanding) == 2 * 7 + 1
    assert {"depth_head.in_hidden.weight", "final_norms.generation.weight"} < generation
    assert found["merged"] == {"understanding": generation, "generation": understanding}


@pytest.mark.parametrize(
    ("understanding", "generation", "said"),
    [
        ("both", "other", "differs between"),
        ("both", "emu3", "the checkpoints are of two models: "),
        ("emu3", "emu3", "--model emu3 has no branches to merge"),
    ],
)
def test_what_cannot_be_merged(
    runs: dict[str, Path],
    understanding: str,
    generation: str,
    said: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = {**runs, "other": tmp_path / "other", "emu3": tmp_path / "emu3"}
    family = "unifork" if generation == "other" else "emu3"
    data = write_dataset(tmp_path / "data", family)
    config = run_config(data, Layout(family=family), 1, save=str(folder[generation]))
    spawn(train, 1, replace(config, run=replace(config.run, seed=5)))
    code, _, err = spawn(merge, 1, folder[understanding], folder[generation], tmp_path / "one")
    assert code == 2
    assert said in err and len(err.splitlines()) == 1
    assert not (tmp_path / "one").exists()
