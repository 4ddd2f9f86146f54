"""Replicas of the model, which must stay equal: whether they are, to the last bit."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.utils import unwrap_model

from megatron_aia.runtime.parallel import Parallel, gather_parameters

_DIGEST_BYTES = 8


class DeadRunError(RuntimeError):
    """Going on makes no sense; the text says why, and what is left."""


def check_replicas(models: Sequence[DistributedDataParallel], parallel: Parallel) -> None:
    """Compare the weights of all replicas; every rank calls this.

    Weights are copied to the host, so this takes a while on a GPU.

    Args:
        models: this rank's chunks, between two steps.
        parallel: of the run.

    Raises:
        DeadRunError: on every rank, naming a weight that differs and the ranks that hold it.
    """
    gather_parameters(models)
    own = (parallel.pipeline_rank, parallel.tensor_rank, _digests(models))
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, own, group=parallel.control)
    first: dict[tuple[int, int], tuple[int, dict[str, bytes]]] = {}
    for rank, (stage, tensor, digests) in enumerate(everywhere):
        other, expected = first.setdefault((stage, tensor), (rank, digests))
        different = [name for name, digest in digests.items() if expected[name] != digest]
        if different:
            raise DeadRunError(
                f"rank {rank} and rank {other} hold the same part of the model and differ in "
                f"{len(different)} of {len(digests)} weights, as {different[0]}; a device may be "
                "failing: start again from a checkpoint, without its machine"
            )


def _digests(models: Sequence[DistributedDataParallel]) -> dict[str, bytes]:
    return {
        f"{number}.{name}": _digest(parameter)
        for number, model in enumerate(models)
        for name, parameter in unwrap_model(model).named_parameters()
    }


def _digest(parameter: Any) -> bytes:
    # bfloat16 has no numpy type; every value of it is one of float32.
    values = parameter.detach().float().cpu().contiguous().numpy()
    return hashlib.sha1(values.data, usedforsecurity=False).digest()[:_DIGEST_BYTES]
