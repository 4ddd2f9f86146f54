"""Ends a process in which nothing has ended for too long, and says what it was doing.

Collectives have a time-out of their own. A file system that hangs, a process that was stopped and
a rank that waits for either of them have none.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_aia.runtime.processes import kill_children

SECONDS_A_MINUTE = 60.0
_LOOKS_IN_A_LIMIT = 50
_PATIENCE = 1.2
"""Limits after which a rank ends that waits for another."""
logger = logging.getLogger(__name__)


class Watchdog:
    """Watches the one thing that this process does."""

    def __init__(self) -> None:
        self._doing: str | None = None
        self._since = 0.0
        self._waits = False
        self._limit = 0.0

    def at(self, doing: str, waits: bool = False) -> None:
        """Note that this process begins something, so that all before it has ended.

        Args:
            doing: what it begins.
            waits: for what another rank does, which is to say first what hangs.
        """
        self._doing, self._since, self._waits = doing, time.monotonic(), waits

    @contextmanager
    def watch(self, minutes: int, rank: int) -> Iterator[None]:
        """End this process if, in the block, one thing takes longer than ``minutes``.

        The stacks of all threads go to standard error before. Exit code 1, so that the launcher
        ends the other ranks.
        """
        self._limit = minutes * SECONDS_A_MINUTE
        self.at("starting")
        done = threading.Event()
        thread = threading.Thread(target=self._look, args=(rank, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._doing = None

    def _look(self, rank: int, done: threading.Event) -> None:
        while not done.wait(self._limit / _LOOKS_IN_A_LIMIT):
            doing, seconds = self._doing, time.monotonic() - self._since
            patience = _PATIENCE if self._waits else 1.0
            if doing is not None and seconds > self._limit * patience:
                logger.error(
                    "rank %d: no end after %.0f s (--distributed-timeout-minutes) of: %s. A file "
                    "system or a process hangs; the stacks of this rank follow",
                    *(rank, seconds, doing),
                )
                faulthandler.dump_traceback(sys.stderr)
                sys.stderr.flush()
                kill_children()
                os._exit(1)


watchdog = Watchdog()
"""Of this process."""
