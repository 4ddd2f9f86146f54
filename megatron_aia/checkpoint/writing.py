"""The tensors of a checkpoint on their way to the disk, in this process or beside the next steps.

megatron-core plans who writes what, copies tensors to the host, writes the files, and in the end
gathers what the writers report. A process in the background cannot be given a queue to report by:
it would wait, once it has written, until somebody reads. So every writer reports into a file
without a name, which is read when it has ended.
"""

from __future__ import annotations

import io
import pickle
import queue
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.strategies.async_utils import TemporalAsyncCaller

from megatron_aia.checkpoint.manifest import FileSums, sum_files_of_rank
from megatron_aia.runtime.mcore import plan_save
from megatron_aia.runtime.processes import end_with_children, follow_parent
from megatron_aia.runtime.watchdog import watchdog

_PURPOSE = "that writes a checkpoint"


class TensorWriting:
    """Writes the tensors of one checkpoint; every rank makes one, and calls ``finish``.

    When the constructor returns, the tensors may change: they are copied, or written.

    Args:
        content: sharded state.
        path: folder of the checkpoint, on a file system that all ranks share.
        strategy: megatron-core's, which plans who writes what.
        control: all ranks, on the host.
        in_background: a process of its own writes them.
    """

    def __init__(
        self,
        content: dict[str, Any],
        path: Path,
        strategy: Any,
        control: dist.ProcessGroup,
        in_background: bool,
    ) -> None:
        self._control = control
        self._request = plan_save(content, path, strategy)
        self._process = TemporalAsyncCaller()
        self._exit_code: int | None = 0
        # Fewer tensors than ranks, and some write nothing.
        self._writes = self._request.async_fn is not None
        if not self._writes:
            return
        # A file only where another process writes it: /tmp may be full.
        self._report: IO[bytes] = (
            tempfile.TemporaryFile() if in_background else io.BytesIO()  # noqa: SIM115
        )
        write = partial(_write, self._request.async_fn, self._report, path)
        if in_background:
            task = self._request._replace(async_fn=partial(_follow, write), finalize_fns=[])
            self._process.schedule_async_call(task)
        else:
            rank, _, results = self._request.async_fn_args
            with end_with_children(_PURPOSE):
                write(rank, self._request.preload_fn(), results)

    @property
    def is_written(self) -> bool:
        """Whether this rank's writers have ended, well or not."""
        process = self._process.process
        return process is None or not process.is_alive()

    def finish(self) -> FileSums:
        """Wait for the writers of all ranks and return the sums of all their files.

        Raises:
            CheckpointException: on every rank, if one of them failed.
        """
        watchdog.at("saving a checkpoint: waiting for the process that writes it")
        process = self._process.process
        self._process.is_current_async_call_done(blocking=True, no_dist=True)
        self._exit_code = process.exitcode if process is not None else 0
        # On the host: the slowest writer may take longer than a collective of the GPU may.
        watchdog.at("saving a checkpoint: waiting for all ranks to write", waits=True)
        dist.barrier(self._control)
        sums: FileSums = {}
        if self._writes:
            results, sums = self._read_report()
            self._request.async_fn_args[2].put(results)
        for finalize in self._request.finalize_fns:
            finalize()
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, sums, group=self._control)
        return {name: each for part in everywhere for name, each in part.items()}

    def abandon(self) -> None:
        """End this rank's writers; the checkpoint stays incomplete."""
        self._process.close(abort=True)

    def _read_report(self) -> tuple[Any, FileSums]:
        with self._report:
            self._report.seek(0)
            try:
                results, sums = pickle.load(self._report)
            except (EOFError, pickle.UnpicklingError):
                return RuntimeError(self._how_it_ended()), {}
        return results, sums

    def _how_it_ended(self) -> str:
        process = f"rank {dist.get_rank()}'s process {_PURPOSE}"
        if self._exit_code is not None and self._exit_code < 0:
            return f"{process} was killed, as the system does when memory runs out"
        return f"{process} ended with exit code {self._exit_code}; its own error stands above"


def _follow(write: Callable[..., None], *args: Any) -> None:
    """Run in a process of its own, which ends with the one that forked it."""
    follow_parent()
    with end_with_children(_PURPOSE):
        write(*args)


def _write(
    write: Callable[..., None],
    report: IO[bytes],
    path: Path,
    rank: int,
    tensors: Any,
    results: Any,
) -> None:
    """Write the files of a rank and report what megatron-core and the manifest need to know."""
    own: queue.Queue[Any] = queue.Queue()
    write(rank, tensors, own)
    outcome, sums = own.get_nowait(), {}
    if not isinstance(outcome, Exception):
        watchdog.at("saving a checkpoint: reading its tensors again for their checksums")
        try:
            sums = sum_files_of_rank(path, rank)
        except OSError as error:
            outcome = OSError(f"what was written cannot be read again: {error}")
    pickle.dump((outcome, sums), report)
    report.flush()
