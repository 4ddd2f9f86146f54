"""One optimizer step: all micro-batches are drawn and counted first, then mcore's schedule runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from megatron_aia.aia.inject import AlignInput
from megatron_aia.aia.loss import AlignObjective
from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import NUM_TASKS, Task, without_terms
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch, held_by_rank
from megatron_aia.models.layers import uses_own_attention
from megatron_aia.models.spec import ModelSpec
from megatron_aia.runtime.device import device
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.runtime.row_chunks import take_held
from megatron_aia.training.losses import StepCounts, count_step, token_coefficients


@dataclass(frozen=True)
class StepInput:
    """A micro-batch on the device, with what its loss and its intensities need."""

    batch: MicroBatch
    """The tokens that this rank holds, with the segments of whole rows."""
    align: AlignInput | None
    """None where megatron-core's own attention runs."""
    coefficients: torch.Tensor
    """fp32, one for each label of ``batch``."""


@dataclass(frozen=True)
class StepOutput:
    """What one step leaves behind on this rank."""

    counts: StepCounts
    aligns: tuple[AlignInput, ...]
    """One a micro-batch, holding the intensities of this rank's layers; empty with AIA off."""
    next_token: torch.Tensor
    """float64 ``[1 + NUM_TASKS]``: this rank's part of the normalised loss, then the sums of
    w_t * nll_t by task, of the tokens it holds. Zero but on the last pipeline stage."""


def plan_step(
    batches: Sequence[MicroBatch],
    config: Config,
    parallel: Parallel,
    targets: LayerTargets | None,
) -> tuple[StepCounts, list[StepInput]]:
    """Count the global batch and attach the normalisers to this rank's part of its micro-batches.

    Context-parallel ranks read the same rows and count them whole. Only then are the rows cut.

    Args:
        batches: this rank's micro-batches of whole rows, on the host.
        config: of the run.
        parallel: of the run; all its data-parallel ranks must call this together.
        targets: of the AIA term; None leaves it off.
    """
    counts = count_step(batches, parallel.groups.dp)
    objective = None if targets is None else _objective(config, counts, targets)
    place = (parallel.context_rank, parallel.context_size)
    inputs = []
    for batch in batches:
        align = None
        if objective is not None or uses_own_attention(config):
            align = AlignInput(
                segments=batch.segments if objective else without_terms(batch.segments),
                objective=objective,
                num_heads=config.model.num_attention_heads,
                group=parallel.groups.tp_cp,
            )
        coefficients = token_coefficients(batch, counts, config.training.ntp_normalizer)
        held = take_held(coefficients, *place, dim=1).to(device())
        inputs.append(StepInput(_to_device(held_by_rank(batch, *place)), align, held))
    return counts, inputs


def _objective(config: Config, counts: StepCounts, targets: LayerTargets) -> AlignObjective:
    inactive = counts.inactive if config.aia.aia_count_inactive else 0
    return AlignObjective(
        targets=targets,
        lambdas={
            Task.GENERATION: config.aia.aia_lambda_generation,
            Task.UNDERSTANDING: config.aia.aia_lambda_understanding,
        },
        num_layers=config.model.num_layers,
        num_active=counts.terms + inactive,
        penalty=config.aia.aia_loss,
    )


def _to_device(batch: MicroBatch) -> MicroBatch:
    tensors: dict[str, Any] = {
        field.name: value.to(device(), non_blocking=True)
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor)
    }
    return replace(batch, **tensors)


def run_step(
    models: list[DistributedDataParallel],
    spec: ModelSpec,
    config: Config,
    parallel: Parallel,
    batches: Sequence[MicroBatch],
    targets: LayerTargets | None,
) -> StepOutput:
    """Run forward and backward over the global batch; gradients are left in the model chunks.

    Args:
        models: this rank's chunks, wrapped for mixed precision and data parallelism.
        spec: of the model family.
        config: of the run.
        parallel: of the run.
        batches: this rank's micro-batches of whole rows; every rank has the same number of them.
        targets: of the AIA term; None leaves it off.
    """
    counts, inputs = plan_step(batches, config, parallel, targets)
    for model in models:
        model.zero_grad_buffer()
    reports: list[torch.Tensor] = get_forward_backward_func()(
        forward_step_func=partial(_forward_step, spec),
        data_iterator=[iter(inputs) for _ in models],
        model=models,
        num_microbatches=len(inputs),
        seq_length=config.data.seq_length,
        micro_batch_size=config.data.micro_batch_size,
    )
    total = torch.zeros(1 + NUM_TASKS, dtype=torch.float64, device=device())
    for report in reports:
        total += report
    measured = targets is not None
    aligns = tuple(item.align for item in inputs if measured and item.align is not None)
    return StepOutput(counts, aligns, total)


def sum_gradients(models: list[DistributedDataParallel], _: Any = None, **kwargs: Any) -> None:
    """Finish the gradients of a step: sums over data- and context-parallel ranks, no average.

    Takes the place of megatron-core's function, which would divide by the token count it is given.
    """
    finalize_model_grads(models, None, **kwargs)


def _forward_step(
    spec: ModelSpec, inputs: Iterator[StepInput], model: torch.nn.Module
) -> tuple[torch.Tensor, Any]:
    item = next(inputs)
    output = spec.forward(model, item.batch, item.align)
    return output, partial(_next_token_loss, item)


def _next_token_loss(
    item: StepInput, nll: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the loss of a micro-batch, an unused count, and its part of the report.

    The count must be there: without it the schedule multiplies by the context-parallel size.

    Args:
        item: the micro-batch.
        nll: ``[b, s]`` negative log-likelihoods of the tokens that this rank holds.
    """
    loss = (nll.float() * item.coefficients).sum()
    weighted = (nll.detach() * item.batch.label_weights).double().flatten()
    by_task = torch.zeros(NUM_TASKS, dtype=torch.float64, device=nll.device)
    by_task.index_add_(0, item.batch.label_tasks.flatten(), weighted)
    # A copy: the schedule may change the loss in place.
    report = torch.cat([loss.detach().double().clone().reshape(1), by_task])
    return loss, torch.ones((), dtype=torch.int, device=nll.device), report
