"""Flags of the command that verifies checkpoints. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from megatron_aia.config.value_types import POSITIONAL, PositiveInt


@dataclass(kw_only=True)
class VerifyCheckpointOptions:
    """Settings of tools/verify_checkpoint.py."""

    checkpoints: Annotated[tuple[Path, ...], POSITIONAL] = ()
    """Checkpoints, or folders of runs."""
    all: bool = False
    """Every checkpoint of a run's folder, not the newest alone."""
    num_workers: PositiveInt = 1
    """Processes that read a checkpoint's files."""
