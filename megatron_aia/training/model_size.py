"""How large a run's model is: parameters by stage, and memory as far as it can be told before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_aia.config import Config
from megatron_aia.runtime.parallel import Parallel

_GIB = 2**30


@dataclass(frozen=True)
class ModelSize:
    """Parameters of the whole model, padding of vocabularies included."""

    by_stage: tuple[int, ...]
    """Of each pipeline stage; a matrix that first and last stage share counts in both."""
    trainable: int
    largest_rank: int
    """Parameters that the fullest rank holds."""
    largest_trainable: int
    """As ``largest_rank``, without frozen ones."""


def model_size(models: Sequence[Any], parallel: Parallel) -> ModelSize:
    """Count the parameters of all stages; every rank calls this."""
    whole = whole_trainable = held = held_trainable = 0
    for parameter in (p for model in models for p in model.parameters()):
        is_split = getattr(parameter, "tensor_model_parallel", False)
        count = parameter.numel() * (parallel.tensor_size if is_split else 1)
        whole += count
        held += parameter.numel()
        if parameter.requires_grad:
            whole_trainable += count
            held_trainable += parameter.numel()
    mine = torch.tensor([parallel.pipeline_rank, whole, whole_trainable, held, held_trainable])
    everywhere = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, mine, group=parallel.control)
    stages = {int(entry[0]): entry for entry in everywhere}
    fullest = max(everywhere, key=lambda entry: int(entry[3]))
    return ModelSize(
        by_stage=tuple(int(stages[stage][1]) for stage in sorted(stages)),
        trainable=sum(int(entry[2]) for entry in stages.values()),
        largest_rank=int(fullest[3]),
        largest_trainable=int(fullest[4]),
    )


def static_bytes(config: Config, size: ModelSize, parallel: Parallel) -> float:
    """Return bytes of weights, gradients and optimizer states on the fullest rank.

    Gradients are fp32. Adam keeps two moments in fp32, and beside bfloat16 weights an fp32 copy;
    the distributed optimizer shares them out over data- and context-parallel ranks.
    """
    bf16, zero = config.training.bf16, config.parallel.use_distributed_optimizer
    shares = parallel.groups.dp_cp.size() if zero else 1
    weights = size.largest_rank * (2 if bf16 else 4)
    return weights + size.largest_trainable * (4 + (12 if bf16 else 8) / shares)


def activation_bytes(config: Config, parallel: Parallel) -> float:
    """Return bytes that a first stage's layers keep for backward, by Megatron-LM's formula.

    Korthikanti et al. 2022, for bfloat16 and a fused attention: s b h (18 + 4 ffn / h) a layer,
    split over tensor-parallel ranks with sequence parallelism, else 10 of the 18 on each of them;
    2 s b h with full recompute. It knows no SwiGLU and no grouped queries.
    """
    model, layout = config.model, config.parallel
    hidden = model.hidden_size
    tokens = config.data.seq_length * config.data.micro_batch_size / parallel.context_size
    split = 18 + 4 * model.ffn_hidden_size / hidden
    if layout.recompute_granularity == "full":
        split = 2.0
    whole = 0.0
    if not layout.sequence_parallel:
        whole = min(10.0, split)
        split -= whole
    a_layer = tokens * hidden * (whole + split / parallel.tensor_size)
    layers_in_flight = model.num_layers  # layers of a stage x micro-batches that are on their way
    return a_layer * layers_in_flight * (1 if config.training.bf16 else 2)


def describe_size(config: Config, size: ModelSize, parallel: Parallel) -> list[tuple[str, str]]:
    """Return (label, text) lines for the banner."""
    total = sum(size.by_stage)
    parameters = f"{total:,}"
    if size.trainable != total:
        parameters += f", of which {size.trainable:,} are trained"
    if len(size.by_stage) > 1:
        parameters += "; by stage " + ", ".join(f"{count:,}" for count in size.by_stage)
    static = static_bytes(config, size, parallel) / _GIB
    activations = activation_bytes(config, parallel) / _GIB
    memory = (
        f"{static:.3g} GiB a rank for weights, gradients and optimizer; by Megatron-LM's formula "
        f"some {activations:.3g} GiB of activations"
    )
    return [("parameters", parameters), ("memory", memory)]


def draw_layout(parallel: Parallel, num_layers: int) -> list[str]:
    """Return a line for each pipeline stage: its layers, and the ranks that hold them."""
    stages, chunks = parallel.pipeline_size, parallel.virtual_stages
    each = num_layers // (stages * chunks)
    ranks = dist.get_world_size()
    lines = []
    for stage in range(stages):
        firsts = [(chunk * stages + stage) * each for chunk in range(chunks)]
        layers = ", ".join(f"{first}-{first + each - 1}" for first in firsts)
        # Pipeline stages are the slowest to change over ranks: megatron-core's order tp-cp-dp-pp.
        held = f"{stage * ranks // stages}-{(stage + 1) * ranks // stages - 1}"
        ends = ["embedding"] * (stage == 0) + ["heads"] * (stage == stages - 1)
        where = f" and {' and '.join(ends)}" if ends else ""
        lines.append(f"stage {stage}: layers {layers}{where} on ranks {held}")
    return lines
