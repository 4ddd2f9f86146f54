"""The fused kernels compile for an H100 or H200, on tensor cores and without spilling registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="comes with the extra dev, on Linux")

SHARED_MEMORY = 227 * 1024
"""Bytes that one block may have on compute capability 9.0."""


@pytest.mark.parametrize(
    "head_size",
    [128, *(pytest.param(size, marks=pytest.mark.slow) for size in (64, 80, 96))],
)
def test_no_kernel_spills_on_compute_capability_9(head_size: int, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"HEAD_SIZES": str(head_size), "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "support.compile_fused"],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    kernels = json.loads(run.stdout)[str(head_size)]
    assert len(kernels) == 3
    for name, used in kernels.items():
        assert used["stack"] == used["spills"] == 0, (name, used)
        assert used["tensor core instructions"] > 0, (name, used)
        assert used["shared"] <= SHARED_MEMORY, (name, used)
