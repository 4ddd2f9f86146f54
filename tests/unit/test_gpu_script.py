"""``make gpu`` starts: without a GPU its parts run on a CPU, or say why not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="make gpu runs it here")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def verdicts(output: Path, *flags: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, str(SCRIPT), "--output", str(output), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    return done.returncode, {entry["part"]: entry for entry in found}, done.stdout


def test_parts_say_what_they_found(tmp_path: Path) -> None:
    code, found, shown = verdicts(tmp_path / "proof", "--parts", "self_check", "tests", "fp8")
    assert code == 0, shown
    assert "CPU" in found["machine"]["machine"]
    assert found["self_check"]["ok"] is True
    assert len(found["self_check"]["errors_in_tolerances"]) > 20
    for name in ("tests", "fp8"):
        assert found[name]["ok"] is None and "no GPU" in found[name]["why"]
        assert f"LEFT OUT  {name}" in shown
    assert shown.count("PASS ") == 1


def test_without_time_the_rest_is_left_out(tmp_path: Path) -> None:
    code, found, _ = verdicts(tmp_path / "proof", "--seconds", "5", "--parts", "run", "demo")
    assert code == 0
    assert [found[name]["why"] for name in ("run", "demo")] == ["no time left"] * 2


@pytest.mark.slow
def test_all_parts_start(tmp_path: Path) -> None:
    code, found, shown = verdicts(tmp_path / "proof")
    assert code == 0, shown
    left_out = {name for name, entry in found.items() if entry.get("ok", True) is None}
    assert left_out == {"tests", "fp8"}
    assert "goal of x 1.05" in shown and "goal of x 1.01" in shown
