"""Files beside the log: a trace of some steps, the history of GPU memory."""

import logging
from pathlib import Path

import torch.distributed as dist

from megatron_aia.config import Config
from megatron_aia.config.validate_logging import run_folder
from megatron_aia.runtime.profiling import MemoryHistory, StepProfiler

logger = logging.getLogger(__name__)


class Traces:
    """What ``--profile`` and ``--record-memory-history`` ask for, on the ranks that they name."""

    def __init__(self, config: Config) -> None:
        logging, folder = config.logging, run_folder(config)
        self._profiler: StepProfiler | None = None
        self._memory: MemoryHistory | None = None
        if folder is None or dist.get_rank() not in logging.profile_ranks:
            return
        if logging.profile:
            steps = (logging.profile_step_start, logging.profile_step_end)
            self._profiler = StepProfiler(Path(folder), *steps)
        if logging.record_memory_history:
            self._memory = MemoryHistory(Path(folder))

    def before_step(self, step: int) -> None:
        """Begin or end the trace; called before step ``step`` (counted from 1)."""
        if self._profiler:
            self._profiler.before_step(step)

    def close(self) -> None:
        """Write what is still open."""
        if self._profiler:
            self._profiler.close()
            if not self._profiler.has_written:
                logger.info("--profile: no step was traced, the run did not come to its first one")
        if self._memory:
            self._memory.write()
