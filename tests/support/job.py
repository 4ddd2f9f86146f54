"""A run in processes of its own, which can be killed as a cluster kills them."""

import datetime
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import torch.distributed as dist

from megatron_aia.config import Config, dump
from megatron_aia.runtime.mcore import install
from megatron_aia.training.trainer import Trainer

SCRIPT = Path(__file__).parents[2] / "examples" / "pretrain_emu3_aia.sh"
_SHARE_OF_ONE = 0.7
"""How often one process is killed, not all."""


class Job:
    """The ranks of one run, in a session of their own; when one ends badly, the others are killed.

    As under torchrun, but the ranks are forks of this process, so modules are imported once.

    Args:
        config: of the run.
        world_size: ranks.
        log: file that gets what they print.
    """

    def __init__(self, config: Config, world_size: int, log: Path) -> None:
        self.exit_code: int | None = None
        self.leader = self._start(config, world_size, log)

    def _start(self, config: Config, world_size: int, log: Path) -> int:
        install()
        rendezvous = tempfile.mkdtemp()
        leader = os.fork()
        if not leader:
            os._exit(_lead(config, world_size, log, rendezvous))
        return leader

    def processes(self) -> list[int]:
        """Return the processes of the job that are no zombies: ranks, their helpers, the leader."""
        return [process for process, session in _sessions().items() if session == self.leader]

    def is_running(self) -> bool:
        if self.exit_code is None:
            done, status = os.waitpid(self.leader, os.WNOHANG)
            if done:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is None

    def kill(self, random: Random) -> None:
        """Send SIGKILL to a rank or a helper of one, or to all processes."""
        others = sorted(process for process in self.processes() if process != self.leader)
        one = [random.choice(others)] if others and random.random() < _SHARE_OF_ONE else None
        for process in one or [self.leader, *others]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def wait(self, seconds: float = 180) -> int:
        """Wait for the end of every process of the job; return the leader's exit code."""
        wait_until(lambda: not self.is_running(), seconds, "the job does not end")
        wait_until(lambda: not self.processes(), 15, "processes outlive their job")
        assert self.exit_code is not None
        return self.exit_code


class LaunchedJob(Job):
    """The same by torchrun and the training script, as a user starts it."""

    def _start(self, config: Config, world_size: int, log: Path) -> int:
        self._mark = f"JOB_OF_A_TEST={uuid.uuid4().hex}"
        file = Path(tempfile.mkdtemp()) / "config.yaml"
        file.write_text(dump(config))
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command = [sys.executable, *torchrun, str(world_size), str(SCRIPT), "--config", str(file)]
        name, _, value = self._mark.partition("=")
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, name: value},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process.returncode = 0  # `is_running` waits for it in its place
        return process.pid

    def processes(self) -> list[int]:
        """See ``Job``; torchrun gives every rank a session of its own."""
        found = []
        for process in _sessions():
            with suppress(OSError):
                if self._mark.encode() in Path(f"/proc/{process}/environ").read_bytes():
                    found.append(process)
        return found


def wait_until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.005)


def _sessions() -> dict[int, int]:
    """Return the session of every process of this machine that is no zombie."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if state != "Z":
                found[int(stat.parent.name)] = int(session)
    return found


def _lead(config: Config, world_size: int, log: Path, rendezvous: str) -> int:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    ranks = []
    for rank in range(world_size):
        child = os.fork()
        if not child:
            os._exit(_run_rank(config, rank, world_size, rendezvous))
        ranks.append(child)
    for _ in ranks:
        _, status = os.wait()
        if status:
            for other in ranks:
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
            return 1
    return 0


def _run_rank(config: Config, rank: int, world_size: int, rendezvous: str) -> int:
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}/store",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=60),
        )
        Trainer(config).run()
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
