"""Stopping when the cluster asks for it: between two steps, on all ranks together."""

import signal
from types import FrameType


class StopSignal:
    """Remembers a SIGTERM, which may reach the ranks at different steps or only some of them.

    Args:
        listens: take over SIGTERM of this process; else none is ever received.
    """

    def __init__(self, listens: bool) -> None:
        self.received = False
        """Whether this rank has received it; ``SyncedLoader`` asks all of them."""
        if listens:
            signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True
