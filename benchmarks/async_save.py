"""How long steps wait for checkpoints with and without --async-save, side by side in one run.

Two ranks train the demo's model, made wider, and save every few steps; without and with the flag in
turn. Counted are the seconds that steps waited, as the log says them, and those of the whole run.

    python benchmarks/async_save.py [--hidden-size 512] [--rounds 3]
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options

ROOT = Path(__file__).parents[1]
STEPS, INTERVAL = 24, 8
SAVED = re.compile(r"saved .* in ([\d.]+) s(?:, of which steps waited ([\d.]+) s)?")
DONE = re.compile(r"iteration +(\d+)/")


@dataclass
class Options:
    hidden_size: int = 512
    """Of 4 layers; the checkpoint grows with its square."""
    rounds: int = 3
    """Runs of each kind, in turn."""


@dataclass
class Run:
    waited: list[float]
    """Seconds that steps waited for each checkpoint but the last, which nothing follows."""
    took: list[float]
    """Seconds until each of them was complete."""
    seconds: float
    """From the first step to the last line."""
    gigabytes: float
    """Of a checkpoint."""


def command(options: Options, folder: Path, flags: list[str]) -> list[str]:
    width = options.hidden_size
    size = ["--hidden-size", width, "--ffn-hidden-size", 3 * width, "--num-layers", 4]
    steps = [
        "--train-iters",
        STEPS,
        "--save-interval",
        INTERVAL,
        "--log-interval",
        1,
        "--global-batch-size",
        4,
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    script = ROOT / "examples/pretrain_emu3_aia.sh"
    layout = ["--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 1]
    words = [sys.executable, *launcher, script, *size, *steps, *layout, "--save", folder, *flags]
    return [str(word) for word in words]


def train(options: Options, flags: list[str]) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command(options, Path(folder), flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        first = last = 0.0
        saved: list[tuple[float, float]] = []
        for line in process.stdout:
            if DONE.search(line):
                first = first or time.monotonic()
            if found := SAVED.search(line):
                saved.append((float(found[2] or found[1]), float(found[1])))
            last = time.monotonic()
        assert process.wait() == 0 and len(saved) == STEPS // INTERVAL
        files = [file for file in Path(folder).glob("iter_*/*") if file.is_file()]
        size = sum(file.stat().st_size for file in files) / len(saved) / 1e9
    waited, took = map(list, zip(*saved[:-1], strict=True))
    return Run(waited, took, last - first, size)


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    kinds = {"a step waits": [], "--async-save": ["--async-save"]}
    runs: dict[str, list[Run]] = {name: [] for name in kinds}
    for _ in range(options.rounds):
        for name, flags in kinds.items():
            runs[name].append(train(options, flags))
    for name, found in runs.items():
        waited = [seconds for run in found for seconds in run.waited]
        took = statistics.median(seconds for run in found for seconds in run.took)
        whole = [run.seconds for run in found]
        print(
            f"{name:14} {found[0].gigabytes:.3f} GB: a step waits {statistics.median(waited):.2f} "
            f"s ({min(waited):.2f} to {max(waited):.2f}), complete after {took:.2f} s; "
            f"{STEPS} steps take {statistics.median(whole):.1f} s "
            f"({min(whole):.1f} to {max(whole):.1f})"
        )


if __name__ == "__main__":
    main()
