"""Process groups of a run, as one object that is passed along."""

import datetime
import gc
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_aia.config import ParallelConfig
from megatron_aia.runtime.device import bind_device, collective_backend, device
from megatron_aia.runtime.mcore import install

# Longer than reading millions of samples for the first time takes.
_CONTROL_TIMEOUT = datetime.timedelta(hours=24)


@dataclass(frozen=True)
class Parallel:
    """Ranks, sizes and groups. ``groups`` is what megatron-core's modules take."""

    groups: ProcessGroupCollection
    virtual_stages: int
    """Model chunks of one pipeline stage; 1 without interleaving."""
    control: dist.ProcessGroup
    """All ranks, on the host, with a long time-out: for waiting while one rank does slow work."""

    @property
    def data_rank(self) -> int:
        """Rank among the processes that read different samples."""
        return self.groups.dp.rank()

    @property
    def data_size(self) -> int:
        """Number of processes that read different samples."""
        return self.groups.dp.size()

    @property
    def tensor_rank(self) -> int:
        """Rank among the processes that share one layer."""
        return self.groups.tp.rank()

    @property
    def tensor_size(self) -> int:
        """Number of processes that share one layer."""
        return self.groups.tp.size()

    @property
    def pipeline_rank(self) -> int:
        """Pipeline stage of this process."""
        return self.groups.pp.rank()

    @property
    def pipeline_size(self) -> int:
        """Number of pipeline stages."""
        return self.groups.pp.size()

    @property
    def context_rank(self) -> int:
        """Rank among the processes that share one sequence of tokens."""
        return self.groups.cp.rank()

    @property
    def context_size(self) -> int:
        """Number of processes that share one sequence of tokens."""
        return self.groups.cp.size()

    @property
    def is_last_stage(self) -> bool:
        """Whether this process computes the loss (in its last model chunk)."""
        return self.pipeline_rank == self.pipeline_size - 1

    def has_embedding(self, virtual_stage: int) -> bool:
        """Return whether chunk ``virtual_stage`` of this process is the model's first."""
        return self.pipeline_rank == 0 and virtual_stage == 0

    def has_output(self, virtual_stage: int) -> bool:
        """Return whether chunk ``virtual_stage`` of this process is the model's last."""
        return self.is_last_stage and virtual_stage == self.virtual_stages - 1


def initialize_process_group(timeout_minutes: int) -> None:
    """Join the processes that torchrun started; a single process without torchrun is a world of 1.

    Adapts megatron-core first, so that nothing is built from an unadapted module.
    """
    install()
    bind_device()
    if dist.is_initialized():
        return
    timeout = datetime.timedelta(minutes=timeout_minutes)
    if "RANK" in os.environ:
        dist.init_process_group(collective_backend(), timeout=timeout)
    else:
        store = dist.HashStore()
        dist.init_process_group(
            collective_backend(), store=store, rank=0, world_size=1, timeout=timeout
        )


def leave_process_group() -> None:
    """End the groups of a run that is over; NCCL warns of those that are left to the exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def create_parallel(config: ParallelConfig, num_layers: int, seed: int) -> Parallel:
    """Create the process groups of one layout and seed the generators that dropout uses.

    Args:
        config: a validated layout.
        num_layers: decoder layers of the whole model.
        seed: of the run; data-parallel, context-parallel and tensor ranks draw different dropout.
    """
    tensor, pipeline, context = config.layout
    virtual_stages = 1
    if config.num_layers_per_virtual_pipeline_stage:
        virtual_stages = num_layers // pipeline // config.num_layers_per_virtual_pipeline_stage
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=virtual_stages if virtual_stages > 1 else None,
        context_parallel_size=context,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=config.distributed_timeout_minutes,
    )
    parallel = Parallel(
        groups=ProcessGroupCollection.use_mpu_process_groups(),
        virtual_stages=virtual_stages,
        control=dist.new_group(backend="gloo", timeout=_CONTROL_TIMEOUT),
    )
    rank_seed = seed + 100 * parallel.pipeline_rank + 10_007 * parallel.groups.dp_cp.rank()
    torch.manual_seed(rank_seed)
    tensor_parallel.model_parallel_cuda_manual_seed(rank_seed, force_reset_rng=True)
    return parallel


def destroy_parallel() -> None:
    """Remove every group except the world, so that another layout can be created.

    megatron-core forgets its groups without destroying them; their threads would stay.
    """
    parallel_state.destroy_model_parallel()
    gc.collect()
    dist.barrier()
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)


def gather_parameters(models: Iterable[Any]) -> None:
    """Complete the weights of every data-parallel rank before anything but a forward reads them.

    With ``--overlap-param-gather`` the updated shards are exchanged only when the next forward
    needs them. Call this after an update: called before one, megatron-core would take the exchange
    for done and the next forward would run on old weights.
    """
    for model in models:
        if model.ddp_config.overlap_param_gather:
            model.start_param_sync(force_sync=True)


def is_anywhere(flag: bool) -> bool:
    """Return whether a flag is set on any rank; every rank calls this."""
    flags = torch.tensor([flag], dtype=torch.int32, device=device())
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags.item())


def broadcast_failure(error: Exception | None, control: dist.ProcessGroup) -> None:
    """Let every rank raise when one failed, instead of waiting for it in the next collective.

    Args:
        error: what this rank caught, or None.
        control: all ranks; see ``Parallel``.

    Raises:
        ValueError: some rank passed a ValueError; the message is that of the lowest such rank.
        RuntimeError: some rank passed another error, likewise.
    """
    messages: list[tuple[str, str] | None] = [None] * dist.get_world_size()
    kind = "ValueError" if isinstance(error, ValueError) else type(error).__name__
    text = None if error is None else (kind, str(error))
    dist.all_gather_object(messages, text, group=control)
    for rank, message in enumerate(messages):
        if message is not None:
            if message[0] == "ValueError":
                raise ValueError(message[1]) from error
            raise RuntimeError(f"rank {rank} failed: {message[0]}: {message[1]}") from error
