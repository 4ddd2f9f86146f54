"""A checkpoint from its empty folder to its name."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megatron_aia.checkpoint.folder import WRITING, complete_checkpoints
from megatron_aia.checkpoint.manifest import FileSums
from megatron_aia.checkpoint.sharded import DAMAGE, first_line
from megatron_aia.checkpoint.writing import TensorWriting
from megatron_aia.runtime.parallel import broadcast_failure
from megatron_aia.runtime.watchdog import watchdog


class CheckpointWriteError(RuntimeError):
    """A checkpoint cannot be written; the older ones are as they were."""


@dataclass(frozen=True)
class Place:
    """Where a checkpoint is written.

    It is written beside its final place and renamed when complete: a run that is killed while it
    saves leaves the older checkpoints, and the pointer to them, as they were.
    """

    folder: Path
    """Of all checkpoints."""
    final: Path
    """Of this one."""

    @property
    def temporary(self) -> Path:
        """Beside it, under a hidden name."""
        return self.final.with_name(f".{self.final.name}.{WRITING}")

    @contextmanager
    def errors_are_named(self) -> Iterator[None]:
        """Name this place, and the room that is left, in whatever goes wrong in the block.

        Raises:
            CheckpointWriteError: in the place of it.
        """
        try:
            yield
        except DAMAGE as error:
            raise CheckpointWriteError(
                f"the checkpoint {self.final} cannot be written: {first_line(error)}"
                f"{self._room()}; older ones are as they were"
            ) from error

    def _room(self) -> str:
        """Return the space that is free, and what the checkpoint before takes."""
        try:
            free = f" ({shutil.disk_usage(self.folder).free / 1e9:.2f} GB are free"
            older = complete_checkpoints(self.folder)
            size = sum(file.stat().st_size for file in older[-1].rglob("*")) if older else 0
        except OSError:
            return ""
        return f"{free}, {older[-1].name} takes {size / 1e9:.2f} GB)" if older else f"{free})"


class PendingSave:
    """A checkpoint whose tensors are copied, and perhaps not written yet.

    Args:
        place: of the checkpoint.
        tensors: on their way there.
        complete: ``(sums of the files of tensors, checkpoints that stay)``: writes what is left and
            gives the checkpoint its name; rank 0 calls it.
        control: all ranks, on the host.
    """

    def __init__(
        self,
        place: Place,
        tensors: TensorWriting,
        complete: Callable[[FileSums, int], None],
        control: dist.ProcessGroup,
    ) -> None:
        self._place = place
        self._tensors = tensors
        self._complete = complete
        self._control = control

    @property
    def is_written(self) -> bool:
        """Whether this rank's tensors are written, so that ``finish`` waits for others alone."""
        return self._tensors.is_written

    def finish(self, keep: int = 0) -> Path:
        """Wait for the tensors, make the checkpoint complete and return its place.

        Every rank calls this.

        Args:
            keep: checkpoints that stay, those written last; 0 keeps all.

        Raises:
            CheckpointWriteError: it cannot be written; naming the place and the room that is left.
        """
        with self._place.errors_are_named():
            sums = self._tensors.finish()
            on_rank_0("publishing it", lambda: self._complete(sums, keep), self._control)
        return self._place.final

    @property
    def path(self) -> Path:
        """Where the checkpoint will stand."""
        return self._place.final

    def abandon(self) -> None:
        """Stop writing; what was written is removed by the next save."""
        self._tensors.abandon()


def on_rank_0(name: str, action: Callable[[], None], control: dist.ProcessGroup) -> None:
    """Run ``action`` on rank 0; if it fails there, every rank raises."""
    error: Exception | None = None
    if dist.get_rank() == 0:
        watchdog.at(f"saving a checkpoint: {name}")
        try:
            action()
        except OSError as caught:
            error = ValueError(f"{name}: {caught}")
    else:
        watchdog.at(f"saving a checkpoint: waiting for rank 0, {name}", waits=True)
    broadcast_failure(error, control)
