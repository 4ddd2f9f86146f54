"""The random states of this process, saved as one entry a rank."""

from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject

from megatron_aia.runtime.device import has_cuda
from megatron_aia.runtime.parallel import Parallel


def random_states(parallel: Parallel) -> ShardedObject:
    """Return the states of host, device and tensor-parallel generators, at this rank's place."""
    states = {
        "host": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state() if has_cuda() else None,
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    replicas = parallel.groups.dp_cp
    return ShardedObject(
        "rng_state",
        states,
        (parallel.pipeline_size, parallel.tensor_size, replicas.size()),
        (parallel.pipeline_rank, parallel.tensor_rank, replicas.rank()),
    )


def set_random_states(states: dict[str, Any]) -> None:
    """Set what ``random_states`` returned."""
    torch.set_rng_state(states["host"])
    if states["device"] is not None and has_cuda():
        torch.cuda.set_rng_state(states["device"])
    tensor_parallel.get_cuda_rng_tracker().set_states(states["tracker"])
