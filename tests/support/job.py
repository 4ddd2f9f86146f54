"""A run in processes of its own, which can be killed as a cluster kills them."""

import datetime
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from megatron_aia.config import Config
from megatron_aia.runtime.mcore import install
from megatron_aia.training.trainer import Trainer


class Job:
    """The ranks of one run, in a session of their own; when one ends badly, the others are killed.

    As under torchrun, but the ranks are forks of this process, so modules are imported once.

    Args:
        config: of the run.
        world_size: ranks.
        log: file that gets what they print.
    """

    def __init__(self, config: Config, world_size: int, log: Path) -> None:
        install()
        self._rendezvous = tempfile.mkdtemp()
        receiver, sender = os.pipe()
        self.leader = os.fork()
        if not self.leader:
            os.close(receiver)
            os._exit(_lead(config, world_size, log, self._rendezvous, sender))
        os.close(sender)
        with os.fdopen(receiver) as pipe:
            self.ranks = [int(number) for number in pipe.readline().split()]
        self.exit_code: int | None = None

    def is_running(self) -> bool:
        if self.exit_code is None:
            done, status = os.waitpid(self.leader, os.WNOHANG)
            if done:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is None

    def kill(self, rank: int | None) -> None:
        """Send SIGKILL to a rank, or to all processes at once."""
        with suppress(ProcessLookupError):
            if rank is None:
                os.killpg(self.leader, signal.SIGKILL)
            else:
                os.kill(self.ranks[rank], signal.SIGKILL)

    def wait(self, seconds: float = 120) -> int:
        """Wait for the end of every process of the job; return the leader's exit code."""
        wait_until(lambda: not self.is_running(), seconds, "the job does not end")
        wait_until(lambda: not _of_session(self.leader), 15, "processes outlive their job")
        assert self.exit_code is not None
        return self.exit_code


def wait_until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.005)


def _of_session(leader: int) -> list[int]:
    """Return the processes of a session that are no zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


def _lead(config: Config, world_size: int, log: Path, rendezvous: str, sender: int) -> int:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    ranks = []
    for rank in range(world_size):
        child = os.fork()
        if not child:
            os.close(sender)
            os._exit(_run_rank(config, rank, world_size, rendezvous))
        ranks.append(child)
    os.write(sender, (" ".join(map(str, ranks)) + "\n").encode())
    os.close(sender)
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
