"""The demo, as a user starts it, under two megatron-cores: the same losses, and each's checkpoints.

`make test-newest` runs it: there OTHER_PYTHON is the interpreter that has the other megatron-core.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_aia.analysis.records import LogRecord, read_records
from megatron_aia.runtime.versions import needs_common_file

OTHER_PYTHON = os.environ.get("OTHER_PYTHON", "")
SCRIPT = Path(__file__).parents[2] / "examples" / "pretrain_emu3_aia.sh"
VERSION = "from megatron_aia.runtime.versions import megatron_core_version as v; print(v())"
STEPS, TOLERANCE = 3, 1e-6

pytestmark = [
    pytest.mark.versions,
    pytest.mark.skipif(not OTHER_PYTHON, reason="no OTHER_PYTHON: `make test-newest` sets it"),
]


@dataclass
class Demo:
    """Starts the demo in one folder, which holds its data too."""

    folder: Path

    def start(
        self, python: str, save: str, *more: object, processes: int = 4
    ) -> subprocess.CompletedProcess[str]:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        launcher = [*torchrun, str(processes)] if processes > 1 else []
        flags = ["--preset", "emu3_demo", "--train-iters", STEPS, "--log-interval", 1]
        flags += ["--save", save, "--save-interval", 1, *more]
        command = [python, *launcher, str(SCRIPT), *map(str, flags)]
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, env=environment()
        )

    def records(self, python: str, save: str, *more: object, processes: int = 4) -> list[LogRecord]:
        result = self.start(python, save, *more, processes=processes)
        assert result.returncode == 0, result.stderr
        return read_records(self.folder / save)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}


def version_of(python: str) -> str:
    command = [python, "-c", VERSION]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    return result.stdout.strip()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def other(demo: Demo) -> list[LogRecord]:
    return demo.records(OTHER_PYTHON, "other")


@pytest.fixture(scope="module")
def ours(demo: Demo, other: list[LogRecord]) -> list[LogRecord]:
    return demo.records(sys.executable, "ours")


def check(ours: list[LogRecord], theirs: list[LogRecord], tolerance: float) -> None:
    assert [record.iteration for record in ours] == [record.iteration for record in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=tolerance)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=tolerance)
        assert a.losses.keys() == b.losses.keys()
        for term, losses in a.losses.items():
            assert losses == pytest.approx(b.losses[term], rel=tolerance), term


def test_the_losses_are_equal(ours: list[LogRecord], other: list[LogRecord]) -> None:
    assert len(ours) == STEPS
    check(ours, other, TOLERANCE)


def test_a_run_goes_on_under_the_newer_one(demo: Demo, other: list[LogRecord]) -> None:
    """In the layout that saved it, so to the same tolerance."""
    start = ("--load", "other/iter_0000001")
    check(demo.records(sys.executable, "on", *start), other[1:], TOLERANCE)


def test_the_older_one_refuses_in_one_line(demo: Demo, ours: list[LogRecord]) -> None:
    before, now = version_of(OTHER_PYTHON), version_of(sys.executable)
    if not needs_common_file(before) or needs_common_file(now):
        pytest.skip(f"{before} reads what {now} writes")
    result = demo.start(OTHER_PYTHON, "back", "--load", "ours", processes=1)
    said = f"was written by megatron-core {now}, and {before} cannot read it; load it with 0.19"
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
