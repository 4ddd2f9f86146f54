"""The tests that need a GPU."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from megatron_aia.runtime.device import has_cuda


def run() -> dict[str, Any]:
    if not has_cuda():
        return {"ok": None, "why": "no GPU"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--no-header", "tests/gpu"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    told = [line for line in lines if line.startswith(("FAILED", "ERROR"))][:20]
    return {"ok": done.returncode == 0, "lines": [*told, lines[-1] if lines else "no output"]}
