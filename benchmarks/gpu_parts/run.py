"""A run under torchrun: forked workers, pinned batches, distributed optimizer, save, resume."""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.layouts import Layout
from support.runs import run_config, write_dataset

from megatron_aia.analysis.records import read_records
from megatron_aia.config import dump
from megatron_aia.runtime.device import collective_backend, has_cuda

STOP, END = 4, 8
ROOT = Path(__file__).parents[2]
PARALLEL = {
    "use_distributed_optimizer": True,
    "overlap_grad_reduce": True,
    "overlap_param_gather": True,
}


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = run_config(write_dataset(folder / "data"), Layout(PARALLEL), train_iters=END)
        config = replace(
            config,
            data=replace(config.data, num_workers=2),
            training=replace(config.training, bf16=has_cuda()),
        )
        (folder / "run.yaml").write_text(dump(config))
        whole, parts = folder / "whole", folder / "parts"
        _train(folder, "--save", whole, "--save-interval", STOP)
        _train(folder, "--save", parts, "--load", whole / f"iter_{STOP:07d}")
        expected, found = (read_records(path)[-1] for path in (whole, parts))
    same = expected.loss == found.loss and expected.grad_norm == found.grad_norm
    # Kernels of a GPU may add up in another order from run to run.
    close = abs(expected.loss - found.loss) < 1e-3 * abs(expected.loss)
    lines = [
        f"{collective_backend()}; loss after a resume {found.loss:.6f}, without {expected.loss:.6f}"
        f": {'the same bits' if same else 'not the same bits'}"
    ]
    return {"ok": same or (has_cuda() and close), "lines": lines}


def _train(folder: Path, *flags: object) -> None:
    command = [sys.executable, ROOT / "examples" / "torchrun.py", "--standalone"]
    command += ["--nproc-per-node", "1", ROOT / "examples" / "pretrain_emu3_aia.sh"]
    command += ["--config", folder / "run.yaml", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-1500:])
