"""Stopping when the cluster asks for it: at the end of a step, on all ranks together."""

import signal
from types import FrameType

import torch
import torch.distributed as dist

from megatron_aia.runtime.parallel import Parallel


class StopSignal:
    """Remembers a SIGTERM, which may reach the ranks at different steps or only some of them."""

    def __init__(self, parallel: Parallel) -> None:
        """Take over SIGTERM of this process."""
        self._control = parallel.control
        self._received = False
        signal.signal(signal.SIGTERM, self._remember)

    def requested(self) -> bool:
        """Return whether any rank received the signal; every rank calls this after each step."""
        flag = torch.tensor(int(self._received))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._control)
        return bool(flag)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = True
