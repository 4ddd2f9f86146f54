"""When a run saves, and the checkpoint that it is still writing."""

import logging
import time
from pathlib import Path

from megatron_aia.checkpoint.io import CheckpointIO
from megatron_aia.checkpoint.pending import PendingSave
from megatron_aia.checkpoint.run_state import RunState
from megatron_aia.config import CheckpointConfig
from megatron_aia.training.stop_signal import StopSignal

logger = logging.getLogger(__name__)


class Saver:
    """Saves between steps, or beside the steps that follow; every rank calls all of it together.

    At most one checkpoint is being written: the next one waits for its end.

    Args:
        options: of the run.
        train_iters: its last step, which is always saved.
        stop: learns how long a save takes.
    """

    def __init__(self, options: CheckpointConfig, train_iters: int, stop: StopSignal) -> None:
        self._options = options
        self._train_iters = train_iters
        self._stop = stop
        self._pending: PendingSave | None = None
        self._began = self._waited = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether a checkpoint is not complete yet, on all ranks alike."""
        return self._pending is not None

    @property
    def is_writing(self) -> bool:
        """Whether this rank still writes it; ``SyncedLoader`` asks all of them."""
        return self._pending is not None and not self._pending.is_written

    def is_due(self, iteration: int) -> bool:
        """Return whether a checkpoint follows this step."""
        if not self._options.save:
            return False
        interval = self._options.save_interval
        return iteration == self._train_iters or bool(interval and iteration % interval == 0)

    def save(
        self, checkpoints: CheckpointIO, state: RunState, config_text: str, keeps_older: bool
    ) -> None:
        """Begin a checkpoint, and without --async-save complete it.

        Args:
            checkpoints: of the run.
            state: of the run.
            config_text: its settings.
            keeps_older: see ``complete``.

        Raises:
            CheckpointWriteError: on every rank.
        """
        assert self._options.save is not None
        self.complete(keeps_older)
        self._began, folder = time.monotonic(), Path(self._options.save)
        self._pending = checkpoints.begin(folder, state, config_text, self._options.async_save)
        self._waited = time.monotonic() - self._began
        if not self._options.async_save:
            self.complete(keeps_older)

    def complete(self, keeps_older: bool) -> None:
        """Complete what was begun, if anything was; wait where it is not written yet.

        Args:
            keeps_older: all older checkpoints stay, whatever --save-total-limit says.

        Raises:
            CheckpointWriteError: on every rank.
        """
        if self._pending is None:
            return
        start, pending = time.monotonic(), self._pending
        self._pending = None
        path = pending.finish(0 if keeps_older else self._options.save_total_limit)
        now = time.monotonic()
        self._stop.note_save(now - self._began)
        waited = self._waited + now - start
        beside = f", of which steps waited {waited:.2f} s" if self._options.async_save else ""
        logger.info("saved %s in %.2f s%s", path, now - self._began, beside)

    def abandon(self) -> None:
        """End the processes of this rank that write, where the run ends by an error."""
        if self._pending is not None:
            logger.warning("%s was still being written and is lost", self._pending.path)
            self._pending.abandon()
