"""NCCL's flight recorder: what every rank was doing when a collective ran out of time."""

import os
from pathlib import Path

from megatron_aia.runtime.device import has_cuda

_COLLECTIVES_KEPT = "2000"


def keep_flight_records(folder: Path | None) -> None:
    """Let NCCL remember its last collectives and write them down on a time-out.

    Each rank writes ``nccl_trace/rank_N`` into the folder; ``python -m
    torch.distributed.flight_recorder.fr_trace`` reads them. Call this before the process groups
    are made. What the user has set in the environment stays.

    Args:
        folder: of the run; None leaves PyTorch's own, in /tmp.
    """
    if not has_cuda():
        return
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _COLLECTIVES_KEPT)
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if folder is not None:
        traces = folder / "nccl_trace"
        traces.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(traces / "rank_"))
