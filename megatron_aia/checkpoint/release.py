"""A folder of weights alone, as conversions make it: ``release/`` and the file that names it."""

import dataclasses
from pathlib import Path

import yaml

from megatron_aia.checkpoint.folder import LATEST_FILE, RELEASE
from megatron_aia.checkpoint.run_state import RunState, architecture, write_state
from megatron_aia.config import ModelConfig


def is_release(folder: Path) -> bool:
    """Return whether a folder of checkpoints holds weights alone."""
    latest = folder / LATEST_FILE
    return latest.is_file() and latest.read_text().strip() == RELEASE


def complete_release(folder: Path, model: ModelConfig) -> None:
    """Write what the trainer reads beside the weights in ``folder/release``, which are all there.

    config.yaml sets the architecture and nothing else.
    """
    state = RunState(
        iteration=0,
        consumed_samples=0,
        total_skipped=0,
        data_fingerprint="",
        model=architecture(model),
        layout={"tensor": 1, "pipeline": 1, "virtual": 1, "data": 1, "context": 1},
        optimizer="",
    )
    config = yaml.safe_dump({"model": dataclasses.asdict(model)}, sort_keys=False)
    write_state(folder / RELEASE, state, config)
    (folder / LATEST_FILE).write_text(f"{RELEASE}\n")
