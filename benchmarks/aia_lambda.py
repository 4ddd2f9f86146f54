"""What the AIA term does to intensities and to the next-token loss of the demo, by lambda.

    python benchmarks/aia_lambda.py --data demo_output/data

Every run sees the same samples in the same order from the same weights. Lambda 0 is the run without
AIA: the term has no gradient, and intensities are only measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.analysis.records import LogRecord, read_records

SCRIPT = Path(__file__).parents[1] / "examples" / "pretrain_emu3_aia.sh"


def run(data: str, weight: float, seed: int, iterations: int, folder: Path) -> list[LogRecord]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(SCRIPT), "--preset", "emu3_demo"]
    command += ["--tensor-model-parallel-size", "1", "--pipeline-model-parallel-size", "2"]
    command += ["--data-path", data, "--tensorboard-dir", str(folder), "--seed", str(seed)]
    command += ["--train-iters", str(iterations), "--log-interval", "20"]
    for task in AIA_TASKS:
        command += [f"--aia-lambda-{task.name.lower()}", str(weight)]
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return read_records(folder)


def distance(record: LogRecord, task: Task) -> float:
    return float(np.abs(record.intensity[task] - record.target[task]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--lambdas", type=float, nargs="+", default=[0.0, 40.0, 400.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1235])
    parser.add_argument("--train-iters", type=int, default=100)
    options = parser.parse_args()
    print("| seed | lambda | NTP gen | NTP und | NTP | against lambda 0 | |I-T| gen | |I-T| und |")
    print("|---|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        baseline = None
        for weight in options.lambdas:
            with tempfile.TemporaryDirectory() as folder:
                records = run(options.data, weight, seed, options.train_iters, Path(folder))
            last = records[-1]
            baseline = baseline or last.terms["ntp"]
            gen, und = (last.losses["ntp"][task] for task in AIA_TASKS)
            far = [f"{distance(records[0], t):.3f} -> {distance(last, t):.3f}" for t in AIA_TASKS]
            ntp = last.terms["ntp"]
            change = f"{ntp / baseline - 1:+.1%}"
            print(
                f"| {seed} | {weight:g} | {gen:.3f} | {und:.3f} | {ntp:.3f} | {change} | "
                f"{far[0]} | {far[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
