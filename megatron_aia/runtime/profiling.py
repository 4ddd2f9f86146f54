"""A trace of some steps and the history of GPU memory, by PyTorch's own tools."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from megatron_aia.runtime.device import has_cuda

_ALLOCATIONS_KEPT = 100_000


class StepProfiler:
    """Traces the steps ``start`` to ``end - 1``.

    Args:
        folder: gets ``profile/rank_00000_steps_START_END.json.gz``, for chrome://tracing, Perfetto
            or TensorBoard.
        start: first step to trace, counted from 1.
        end: step before which the trace ends.
    """

    def __init__(self, folder: Path, start: int, end: int) -> None:
        self._path = folder / "profile" / f"{rank_name()}_steps_{start}_{end}.json.gz"
        self._start, self._end = start, end
        self._profile: profile | None = None
        self.has_written = False
        """The trace is there."""

    def before_step(self, step: int) -> None:
        """Begin or end the trace; called before step ``step`` (counted from 1)."""
        if step == self._start:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * has_cuda()
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()
        elif step == self._end:
            self.close()

    def close(self) -> None:
        """End the trace, if it runs, and write it."""
        if self._profile is None:
            return
        self._profile.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self._path))
        self._profile = None
        self.has_written = True


class MemoryHistory:
    """Records who allocates GPU memory, and writes it down at the end or when memory runs out.

    Args:
        folder: gets ``memory/rank_00000.pickle``, for https://pytorch.org/memory_viz.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "memory" / f"{rank_name()}.pickle"
        torch.cuda.memory._record_memory_history(max_entries=_ALLOCATIONS_KEPT)
        observe = torch._C._cuda_attach_out_of_memory_observer  # type: ignore[attr-defined]
        observe(lambda *_: self.write())

    def write(self) -> None:
        """Write what was recorded so far."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(self._path))


def rank_name() -> str:
    """Return the part of a file's name that stands for this rank."""
    return f"rank_{dist.get_rank():05}"
