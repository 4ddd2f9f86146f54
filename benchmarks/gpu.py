"""What runs on this GPU, is right there, and what it costs; the most valuable part first.

    python benchmarks/gpu.py --output gpu_proof.jsonl          (make gpu)

Every part is a process of its own with a time limit. It ends with a verdict on the console and a
line of JSON in the output, so a run that is cut off has still shown something. Without a GPU the
parts run where they can, small, on a CPU: so it is known that they start. What was left out, and
why, is said.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from megatron_aia.runtime.device import describe

HERE = Path(__file__).parent
PARTS = {
    "self_check": ("every attention method against float64", 120),
    "step": ("a step in bf16 is the CPU's step in fp32, to the error of bf16", 90),
    "tests": ("tests/gpu", 150),
    "attention_cost": ("one attention layer, AIA on and off, by kernel", 120),
    "step_cost": ("a whole step at the width of 8B models, AIA on and off", 150),
    "fp8": ("FP8 by Transformer Engine", 90),
    "run": ("a run under torchrun: data, NCCL or gloo, save and resume", 120),
    "demo": ("the demo in bf16", 240),
}
"""Name of the module in gpu_parts, what it shows, and its limit in seconds."""

VERDICTS = {True: "PASS", False: "FAIL", "measured": "MEASURED", None: "LEFT OUT"}
"""A cost is measured; whether it meets its goal, a line says."""


def run_part(name: str, seconds: float) -> dict[str, Any]:
    """Return what a part found; ``ok`` is None where it could not run here."""
    code = f"import json; from gpu_parts import {name} as part; print(json.dumps(part.run()))"
    paths = [str(HERE), str(HERE.parent), str(HERE.parent / "tests"), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    command = [sys.executable, "-c", code]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        shown = (error.stdout or b"")[-500:]
        return {"ok": False, "why": f"not done in {seconds:.0f} s", "shown": str(shown)}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"ok": False, "why": done.stderr.strip()[-2000:] or "it said nothing"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def main() -> None:
    """Run the parts in order, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu_proof.jsonl"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together")
    options = parser.parse_args()
    begin = time.monotonic()
    machine = {"part": "machine", "machine": describe(), "python": platform.python_version()}
    print(machine["machine"], flush=True)
    failed = False
    with options.output.open("w") as output:
        output.write(json.dumps(machine) + "\n")
        for name in options.parts:
            what, limit = PARTS[name]
            left = options.seconds - (time.monotonic() - begin)
            start = time.monotonic()
            if left < 10:
                found: dict[str, Any] = {"ok": None, "why": "no time left"}
            else:
                found = run_part(name, min(limit, left))
            taken = round(time.monotonic() - start, 1)
            output.write(json.dumps({"part": name, "seconds": taken, **found}) + "\n")
            output.flush()
            why = f": {found['why']}" if found.get("why") else ""
            print(f"{VERDICTS[found['ok']]:8}  {name} ({what}), {taken} s{why}", flush=True)
            for line in found.get("lines", ()):
                print(f"          {line}", flush=True)
            failed = failed or found["ok"] is False
    print(f"all of it: {options.output}")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
