"""Entry point: parse, check, train. The scripts in ``examples/`` end here on every rank."""

import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from megatron_aia.aia.profile import load_profile
from megatron_aia.cli import is_rank_0, one_line_errors, parse_with_notes, world_size
from megatron_aia.config import Config, validate
from megatron_aia.config.data_sources import mixture_file
from megatron_aia.config.files import with_values
from megatron_aia.data.mixture_file import read_mixture_file
from megatron_aia.generation.sample_prompts import read_sample_prompts
from megatron_aia.models import check_family, load_family
from megatron_aia.runtime.device import has_cuda, order_collectives
from megatron_aia.runtime.log import quiet_imports
from megatron_aia.runtime.versions import check_versions

_BUILD_TIMEOUT_SECONDS = 600
_IMPORTED_LATER = ("megatron.core", "sentencepiece", "tensorboard", "tqdm")
"""Packages that only a run imports, after its command line was read."""


@record
def main(argv: list[str] | None = None, *, gpu_preset: str, cpu_preset: str) -> None:
    """Train as the command line says, starting from the preset of the device there is.

    What a rank raises reaches torchrun's report.
    """
    arguments = sys.argv[1:] if argv is None else argv
    num_processes = world_size()
    has_gpu = has_cuda()
    with one_line_errors():
        _check_packages()
        flags = [argument for argument in arguments if argument != "--check"]
        preset = gpu_preset if has_gpu else cpu_preset
        command_line = parse_with_notes(flags, default_preset=preset, world_size=num_processes)
        config = command_line.config
        notes = command_line.notes + _check(config, num_processes, has_gpu)
        if "--check" in arguments:
            return
        if is_rank_0():
            _announce(config, num_processes, has_gpu, notes)
        config = ensure_demo_data(config)
        order_collectives(config.parallel.layout[0])
        # Heavy to import, and of no use to a command line that is wrong.
        quiet_imports()
        from megatron_aia.checkpoint.pending import CheckpointWriteError
        from megatron_aia.data.replacements import UnreadableStep
        from megatron_aia.runtime.parallel import leave_process_group
        from megatron_aia.training.replicas import DeadRunError
        from megatron_aia.training.trainer import Trainer

        trainer = Trainer(config)
    with one_line_errors(UnreadableStep, DeadRunError, CheckpointWriteError):
        trainer.run()
    leave_process_group()


def _check(config: Config, world_size: int, has_gpu: bool) -> list[str]:
    """Check settings and the small files that they name; return notes for the banner."""
    check_family(config)
    notes = validate(config, world_size, has_gpu)
    mixture = mixture_file(config.data)
    if mixture:
        read_mixture_file(mixture)
    if config.logging.sample_prompts:
        read_sample_prompts(Path(config.logging.sample_prompts))
    if config.aia.aia:
        profile = load_profile(config.aia.aia_profile)
        profile.resolve(config.model.num_layers, config.aia.aia_targets)
    return notes


def _check_packages() -> None:
    for name in _IMPORTED_LATER:
        try:
            is_there = find_spec(name) is not None
        except ModuleNotFoundError:  # of the package around it
            is_there = False
        if not is_there:
            raise ValueError(f"{name} is not installed; run `make install`")
    check_versions()


def ensure_demo_data(config: Config) -> Config:
    """Give a demo run without data the family's demo shards; rank 0 builds them once."""
    if config.data.data_path:
        return config
    family = load_family(config.model.model)
    if family.demo is None:
        raise ValueError(f"--model {family.name} has no demo data; give --data-path")
    folder = family.demo.folder
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        raise ValueError("the demo data is built on one machine; on several, give --data-path")
    if is_rank_0() and not folder.exists():
        from megatron_aia.building.demo import build_demo

        print(f"building the demo data in {folder}", flush=True)
        # It appears by a rename: the other ranks see all of it or nothing.
        build_demo(folder, family)
    deadline = time.monotonic() + _BUILD_TIMEOUT_SECONDS
    while not (folder / "dataset.json").exists():
        if time.monotonic() > deadline or is_rank_0():
            raise ValueError(f"no demo data in {folder}; remove that folder and start again")
        time.sleep(0.5)
    return with_values(config, {"data_path": (str(folder),)})


def _announce(config: Config, world_size: int, has_gpu: bool, notes: list[str]) -> None:
    device = "GPU" if has_gpu else "CPU (no GPU found)"
    lines = [f"preset {config.run.preset} on {device}, processes: {world_size}"]
    print("\n".join(lines + [f"note: {note}" for note in notes]), flush=True)
