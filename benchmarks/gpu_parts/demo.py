"""The demo, 100 steps of a small Emu3 on photographs, in bf16."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from megatron_aia.aia.roles import AIA_TASKS
from megatron_aia.analysis.records import read_records
from megatron_aia.runtime.device import has_cuda

ROOT = Path(__file__).parents[2]
LARGEST = 4.5
"""Nats a token: fp32 on a CPU ends below 4, an untrained model begins above 7."""
STEPS = 100 if has_cuda() else 12


def run() -> dict[str, Any]:
    missing = [name for name in ("skimage", "sklearn", "PIL") if not _has(name)]
    if missing:
        return {"ok": None, "why": f"not installed: {', '.join(missing)} (pip install '.[demo]')"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "examples" / "torchrun.py"), "--standalone"]
        command += ["--nproc-per-node", "1", str(ROOT / "examples" / "pretrain_emu3_aia.sh")]
        command += ["--preset", "emu3_demo", "--bf16", "--train-iters", str(STEPS)]
        command += ["--save", f"{folder}/run"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"ok": False, "why": (done.stdout + done.stderr)[-1500:]}
        first, *_, last = read_records(Path(folder) / "run")
    losses = {
        task.name.lower(): (first.losses["ntp"][task], last.losses["ntp"][task])
        for task in AIA_TASKS
    }
    lines = [f"{task}: {a:.3f} -> {b:.3f} in {STEPS} steps" for task, (a, b) in losses.items()]
    learned = all(b < a for a, b in losses.values())
    ok = learned and (STEPS < 100 or max(b for _, b in losses.values()) < LARGEST)
    return {"ok": ok, "lines": [*lines, f"{last.seconds_per_iteration:.3f} s a step"]}


def _has(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None
