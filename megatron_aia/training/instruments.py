"""Where time and memory of an interval went, over all ranks: what a log record says of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_aia.config import Config
from megatron_aia.runtime.device import device_name, memory_in_use
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.runtime.peak_flops import peak_flops

PHASES = (
    "data",
    "forward_backward",
    "gradient_reduction",
    "optimizer",
    "validation",
    "samples",
    "save",
)
"""Parts of a step that are timed. What is left of its time is none of them."""

MEMORY = ("allocated", "reserved", "total", "resident")


@dataclass(frozen=True)
class Measured:
    """What all ranks measured in an interval."""

    phases: dict[str, float]
    """Seconds a step, mean over ranks."""
    slowest_rank: int
    """Whose forward and backward took longest, waiting for other replicas not included."""
    rank_spread: float
    """That time over the shortest of all ranks."""
    memory: dict[str, float]
    """Bytes, the most of all ranks; see ``memory_in_use``."""
    flops_a_step: float
    """Of the model, over all ranks."""
    aia_flops_a_step: float
    """What intensities add."""


def measure_ranks(
    seconds: Mapping[str, float], steps: int, flops: float, aia_flops: float, parallel: Parallel
) -> Measured:
    """Bring together what ranks measured over so many steps; every rank calls this.

    Args:
        seconds: by phase, of this rank.
        steps: of the interval.
        flops: of the model on this rank's samples, which it shares with the ranks of its replica.
        aia_flops: as ``flops``.
        parallel: of the run.
    """
    sharing = parallel.tensor_size * parallel.pipeline_size * parallel.context_size
    memory = memory_in_use()
    own = [seconds.get(phase, 0.0) for phase in PHASES]
    own += [flops / sharing, aia_flops / sharing, *(memory.get(name, 0.0) for name in MEMORY)]
    mine = torch.tensor(own, dtype=torch.float64)
    everywhere = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, mine, group=parallel.control)
    ranks = torch.stack(everywhere)
    phases, work, most = ranks.split([len(PHASES), 2, len(MEMORY)], dim=1)
    computing = phases[:, PHASES.index("forward_backward")]
    return Measured(
        phases=dict(zip(PHASES, (phases.mean(0) / steps).tolist(), strict=True)),
        slowest_rank=int(computing.argmax()),
        rank_spread=float(computing.max() / computing.min()),
        memory={
            name: value
            for name, value in zip(MEMORY, most.amax(0).tolist(), strict=True)
            if name in memory
        },
        flops_a_step=float(work[:, 0].sum()) / steps,
        aia_flops_a_step=float(work[:, 1].sum()) / steps,
    )


def peak_of_device(config: Config) -> tuple[float | None, str]:
    """Return the peak FLOP/s of this rank's device, None if unknown, and where it is from."""
    name = device_name()
    if config.logging.peak_flops is not None:
        return config.logging.peak_flops, "--peak-flops"
    found = peak_flops(name)
    if found is None:
        return None, f"left out: the peak of {name} is not known; pass --peak-flops"
    return found, f"the data sheet of {name}, bfloat16"
