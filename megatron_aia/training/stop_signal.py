"""Stopping when the cluster asks for it: between two steps, on all ranks together."""

import logging
import os
import signal
import time
from collections.abc import Sequence
from types import FrameType

_SHARE_OF_A_SAVE = 1.5
"""A save may take so much longer than the longest before it."""
_SECONDS_OF_TORCHRUN = 30
logger = logging.getLogger(__name__)


class StopSignal:
    """Remembers a signal, which may reach the ranks at different steps or only some of them.

    Args:
        names: signals to take over, as ``SIGTERM``; with none, none is ever received. A second
            SIGINT, as of Ctrl-C, ends the process at once.
        minutes: after which the run is to have stopped and saved; None has no such limit.
        saves: that may be left to do then.
    """

    def __init__(
        self, names: Sequence[str] = (), minutes: float | None = None, saves: int = 1
    ) -> None:
        self._is_asked = False
        self._warns = bool(names)
        self._longest_save = 0.0
        self._saves = saves
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        for name in names:
            signal.signal(getattr(signal, name), self._remember)

    @property
    def received(self) -> bool:
        """Whether this rank is to stop; ``SyncedLoader`` asks all of them."""
        if self._deadline is None:
            return self._is_asked
        left = self._deadline - time.monotonic()
        if left < _SHARE_OF_A_SAVE * self._longest_save and not self._is_asked:
            logger.info("%.0f s are left of --exit-duration-in-mins, a save may need them", left)
            self._is_asked = True
        return self._is_asked

    def note_save(self, seconds: float) -> None:
        """Note how long a save took: the last one begins early enough."""
        self._longest_save = max(self._longest_save, self._saves * seconds)
        if self._warns and self._longest_save > _seconds_to_save():
            self._warns = False
            logger.warning(
                "a save took %.0f s, and the launcher kills %.0f s after a signal: a last one "
                "would be cut; give more time by SECONDS_TO_SAVE, or use --exit-duration-in-mins",
                *(seconds, _seconds_to_save()),
            )

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._is_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._is_asked = True


def _seconds_to_save() -> float:
    """Return what the launcher leaves: ours says it to its processes, torchrun has a default."""
    return float(os.environ.get("SECONDS_TO_SAVE") or _SECONDS_OF_TORCHRUN)
