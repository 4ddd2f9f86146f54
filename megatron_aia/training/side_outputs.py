"""What a run writes beside its checkpoints: worth a warning, not the run."""

import logging
from collections import Counter
from collections.abc import Callable

logger = logging.getLogger(__name__)


class SideOutputs:
    """Writes, and goes on where that fails."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        """Writes that failed, by what was to be written."""

    def write(self, what: str, action: Callable[[], object]) -> bool:
        """Call ``action``; the first failure of each kind is a warning, all are counted.

        Returns:
            Whether it was written.
        """
        try:
            action()
        except Exception as error:  # a full disk, a folder that is gone, a figure that fails
            self.failures[what] += 1
            if self.failures[what] == 1:
                logger.warning(
                    "%s cannot be written, and the run goes on without: %s", what, _said(error)
                )
            return False
        return True

    def close(self) -> None:
        """Say how often each failed."""
        for what, count in self.failures.items():
            logger.warning("%s was not written %d times", what, count)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
