"""One checkpoint of two runs that trained a branch each."""

import shutil
from fnmatch import fnmatch
from pathlib import Path

import torch

from megatron_aia.checkpoint.choose import choose_checkpoint
from megatron_aia.checkpoint.conversion import HF_ASSETS, NO_CONVERSION, MergeOptions, summary
from megatron_aia.checkpoint.folder import RELEASE
from megatron_aia.checkpoint.release import complete_release, is_release
from megatron_aia.checkpoint.run_state import CONFIG_FILE, architecture
from megatron_aia.checkpoint.single_process_model import SingleProcessModel
from megatron_aia.config import ModelConfig
from megatron_aia.models import load_family, read_run_config
from megatron_aia.models.family import ModelFamily
from megatron_aia.runtime.atomic import check_target, staged

_BRANCHES = ("understanding", "generation")


def merge_branches(options: MergeOptions) -> str:
    """Take each branch from the run that trained it, and return a summary.

    Raises:
        ValueError: the model does not fork, the two are not of one model, or what both branches
            share differs. Nothing is left behind.
    """
    check_target(options.save, options.overwrite, is_release, NO_CONVERSION)
    folders = dict(zip(_BRANCHES, (options.understanding, options.generation), strict=True))
    paths = {branch: choose_checkpoint(folder) for branch, folder in folders.items()}
    model, family = _common_model(paths)
    counts = dict.fromkeys((*_BRANCHES, "both"), 0)
    with SingleProcessModel(model) as weights, staged(options.save) as folder:
        found = {branch: weights.read(path) for branch, path in paths.items()}
        for name in weights.shapes:
            owner = _owner(family, name)
            if owner is None:
                _check_equal(name, found, paths)
            weights.set(name, found[owner or _BRANCHES[0]][name])
            counts[owner or "both"] += 1
        release = folder / RELEASE
        release.mkdir()
        weights.save(release)
        kept = [path / HF_ASSETS for path in paths.values() if (path / HF_ASSETS).is_dir()]
        if kept:
            shutil.copytree(kept[0], release / HF_ASSETS)
        complete_release(folder, model)
    rows = [(f"from {paths[branch]}", f"{counts[branch]} parameters") for branch in _BRANCHES]
    shared = ("equal in both", f"{counts['both']} parameters")
    return summary([*rows, shared, ("written to", str(options.save))])


def _common_model(paths: dict[str, Path]) -> tuple[ModelConfig, ModelFamily]:
    models = [read_run_config(str(path / CONFIG_FILE)).model for path in paths.values()]
    first, second = map(architecture, models)
    for field, value in first.items():
        if second.get(field) != value:
            raise ValueError(
                f"the checkpoints are of two models: {field} is {value} in --understanding and "
                f"{second.get(field)} in --generation"
            )
    family = load_family(models[0].model)
    if not family.branches:
        raise ValueError(f"--model {family.name} has no branches to merge")
    return models[0], family


def _owner(family: ModelFamily, name: str) -> str | None:
    """Return the branch of a parameter; None if it is of both."""
    for branch, patterns in family.branches.items():
        if any(fnmatch(name, pattern) for pattern in patterns):
            return branch
    return None


def _check_equal(
    name: str, found: dict[str, dict[str, torch.Tensor]], paths: dict[str, Path]
) -> None:
    first, second = (found[branch][name] for branch in _BRANCHES)
    if not torch.equal(first, second):
        raise ValueError(
            f"{name} belongs to both branches and differs between {paths[_BRANCHES[0]]} and "
            f"{paths[_BRANCHES[1]]}; freeze it in both runs, which must start from one checkpoint"
        )
