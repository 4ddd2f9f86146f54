"""Entry point: parse, check, train. ``examples/pretrain_emu3_aia.sh`` ends here on every rank."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from megatron_aia.cli import is_rank_0, one_line_errors, parse
from megatron_aia.config import Config, validate
from megatron_aia.config.files import with_values
from megatron_aia.runtime.device import has_cuda
from megatron_aia.runtime.log import quiet_imports

DEMO_DATA = Path("demo_output/data")
_BUILD_SHARDS = Path(__file__).parents[1] / "tools" / "build_shards.py"
_BUILD_TIMEOUT_SECONDS = 600


def main(argv: list[str] | None = None, *, gpu_preset: str, cpu_preset: str) -> None:
    """Train as the command line says, starting from the preset of the device there is."""
    arguments = sys.argv[1:] if argv is None else argv
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    has_gpu = has_cuda()
    with one_line_errors():
        config = parse(
            [argument for argument in arguments if argument != "--check"],
            default_preset=gpu_preset if has_gpu else cpu_preset,
            world_size=world_size,
        )
        notes = validate(config, world_size, has_gpu)
        if "--check" in arguments:
            return
        if is_rank_0():
            _announce(config, world_size, has_gpu, notes)
        config = ensure_demo_data(config)
        # Heavy to import, and of no use to a command line that is wrong.
        quiet_imports()
        from megatron_aia.training.trainer import Trainer

        trainer = Trainer(config)
    trainer.run()


def ensure_demo_data(config: Config) -> Config:
    """Give a demo run without data the shards of ``demo_output/data``; rank 0 builds them once."""
    if config.data.data_path:
        return config
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        raise ValueError("the demo data is built on one machine; on several, give --data-path")
    if is_rank_0() and not DEMO_DATA.exists():
        _build_demo_data()
    deadline = time.monotonic() + _BUILD_TIMEOUT_SECONDS
    while not (DEMO_DATA / "dataset.json").exists():
        if time.monotonic() > deadline or is_rank_0():
            raise ValueError(f"no demo data in {DEMO_DATA}; remove that folder and start again")
        time.sleep(0.5)
    return with_values(config, {"data_path": (str(DEMO_DATA),)})


def _build_demo_data() -> None:
    print(f"building the demo data in {DEMO_DATA}", flush=True)
    DEMO_DATA.parent.mkdir(parents=True, exist_ok=True)
    # Built aside and renamed: the other ranks, and a later run, see all of it or nothing.
    with tempfile.TemporaryDirectory(dir=DEMO_DATA.parent) as scratch:
        built = Path(scratch) / "data"
        command = [sys.executable, str(_BUILD_SHARDS), "--demo", "--output", str(built)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode or not (built / "dataset.json").exists():
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"{_BUILD_SHARDS.name} --demo failed: {reason}")
        built.rename(DEMO_DATA)


def _announce(config: Config, world_size: int, has_gpu: bool, notes: list[str]) -> None:
    device = "GPU" if has_gpu else "CPU (no GPU found)"
    lines = [f"preset {config.run.preset} on {device}, processes: {world_size}"]
    print("\n".join(lines + [f"note: {note}" for note in notes]), flush=True)
