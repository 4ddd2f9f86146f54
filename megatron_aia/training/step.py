"""One optimizer step: all micro-batches are drawn and counted first, then mcore's schedule runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.loss import AIALoss
from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import NUM_TASKS, Task, without_terms
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch, slice_for_rank
from megatron_aia.models.flops import aia_flops
from megatron_aia.models.layers import uses_own_attention
from megatron_aia.models.losses import LossTerm, Outputs
from megatron_aia.models.spec import ModelSpec
from megatron_aia.runtime.device import device, send
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.runtime.timers import StepTimers
from megatron_aia.training.counts import StepCounts, count_step
from megatron_aia.training.teacher import Teacher


@dataclass
class StepInput:
    """A micro-batch on the device, with what its losses and its intensities need."""

    batch: MicroBatch
    """The tokens that this rank holds, with the segments of whole sequences."""
    aia: AIAContext | None
    """None where megatron-core's own attention runs."""
    coefficients: Mapping[str, torch.Tensor]
    """By loss term: fp32, one for each entry of its target that this rank holds."""
    teacher: Outputs = field(default_factory=dict)
    """Outputs of the teacher, on the last pipeline stage."""


@dataclass(frozen=True)
class StepOutput:
    """What one step leaves behind on this rank."""

    counts: StepCounts
    aia_contexts: tuple[AIAContext, ...]
    """One a micro-batch, holding the intensities of this rank's layers; empty with AIA off."""
    flops: tuple[float, float]
    """Operations of the model and of its intensities on this rank's samples; see models.flops."""
    losses: torch.Tensor
    """float64 ``[terms, 1 + NUM_TASKS]``, of the tokens that this rank holds: its part of each
    normalised term, then the sums of weight x value by task. Zero but on the last stage."""


def plan_step(
    batches: Sequence[MicroBatch],
    spec: ModelSpec,
    terms: Sequence[LossTerm],
    config: Config,
    parallel: Parallel,
    counts: StepCounts,
    objective: AIALoss | None,
) -> list[StepInput]:
    """Attach the normalisers to this rank's part of its micro-batches, and send them to the device.

    Context-parallel ranks read the same rows. Only now, counted whole, are the sequences cut.

    Args:
        batches: this rank's micro-batches of whole sequences, on the host.
        spec: of the model family.
        terms: of the loss.
        config: of the run.
        parallel: of the run.
        counts: of the global batch, or of more that is normalised together.
        objective: the AIA loss over what was counted; None leaves it off.
    """
    inputs = []
    for batch in batches:
        aia = None
        if objective is not None or uses_own_attention(config):
            aia = AIAContext(
                segments=batch.segments if objective else without_terms(batch.segments),
                objective=objective,
                num_heads=config.model.num_attention_heads,
                group=parallel.groups.tp_cp,
            )
        place = (parallel.context_rank, parallel.context_size)
        held, entries = slice_for_rank(batch, *place)
        held = replace(held, places=spec.places(config, held, *place))
        coefficients = {
            term.name: _to_device(
                term.coefficients(batch, counts.of_term[term.name])[entries[term.target]]
            )
            for term in terms
        }
        inputs.append(StepInput(held.map(_to_device), aia, coefficients))
    return inputs


def aia_objective(
    config: Config, counts: StepCounts, targets: LayerTargets | None
) -> AIALoss | None:
    """Return the AIA loss over what was counted; None with AIA off."""
    if targets is None:
        return None
    inactive = counts.inactive if config.aia.aia_count_inactive else 0
    return AIALoss(
        targets=targets,
        lambdas={
            Task.GENERATION: config.aia.aia_lambda_generation,
            Task.UNDERSTANDING: config.aia.aia_lambda_understanding,
        },
        num_layers=config.model.num_layers,
        num_active=counts.intensities + inactive,
        penalty=config.aia.aia_loss,
    )


def _to_device(tensor: torch.Tensor) -> torch.Tensor:
    return send(tensor, device())


def run_step(
    models: list[DistributedDataParallel],
    spec: ModelSpec,
    terms: Sequence[LossTerm],
    config: Config,
    parallel: Parallel,
    batches: Sequence[MicroBatch],
    targets: LayerTargets | None,
    teacher: Teacher | None = None,
) -> StepOutput:
    """Run forward and backward over the global batch; gradients are left in the model chunks.

    Args:
        models: this rank's chunks, wrapped for mixed precision and data parallelism.
        spec: of the model family.
        terms: of the loss.
        config: of the run.
        parallel: of the run.
        batches: this rank's micro-batches of whole sequences; every rank has the same number of
            them.
        targets: of the AIA term; None leaves it off.
        teacher: runs first, over the same micro-batches; needed if a term asks for one.
    """
    counts = count_step(batches, terms, parallel.groups.dp)
    objective = aia_objective(config, counts, targets)
    inputs = plan_step(batches, spec, terms, config, parallel, counts, objective)
    ask_teacher(teacher, inputs)
    for model in models:
        model.zero_grad_buffer()
    losses = _run_schedule(models, spec, terms, config, inputs, forward_only=False)
    flops = (
        sum(spec.flops(config, batch) for batch in batches),
        sum(aia_flops(config, batch) for batch in batches) if objective else 0.0,
    )
    return StepOutput(counts, _contexts(inputs, objective), flops, losses)


def run_validation_step(
    models: list[DistributedDataParallel],
    spec: ModelSpec,
    terms: Sequence[LossTerm],
    config: Config,
    inputs: Sequence[StepInput],
    counts: StepCounts,
    objective: AIALoss | None,
) -> StepOutput:
    """Run forward alone over inputs that ``plan_step`` has made; arguments are those of it."""
    with torch.no_grad():
        losses = _run_schedule(models, spec, terms, config, inputs, forward_only=True)
    return StepOutput(counts, _contexts(inputs, objective), (0.0, 0.0), losses)


def ask_teacher(teacher: Teacher | None, inputs: Sequence[StepInput]) -> None:
    """Give every micro-batch the outputs of the teacher, if there is one."""
    if teacher is not None:
        for item, outputs in zip(inputs, teacher.run([i.batch for i in inputs]), strict=True):
            item.teacher = outputs


def _run_schedule(
    models: list[DistributedDataParallel],
    spec: ModelSpec,
    terms: Sequence[LossTerm],
    config: Config,
    inputs: Sequence[StepInput],
    forward_only: bool,
) -> torch.Tensor:
    """Run megatron-core's schedule; return ``StepOutput.losses``."""
    reports: list[torch.Tensor] = get_forward_backward_func()(
        forward_step_func=partial(_forward_step, spec, terms),
        data_iterator=[iter(inputs) for _ in models],
        model=models,
        num_microbatches=len(inputs),
        seq_length=config.data.seq_length,
        micro_batch_size=config.data.micro_batch_size,
        forward_only=forward_only,
    )
    total = torch.zeros(len(terms), 1 + NUM_TASKS, dtype=torch.float64, device=device())
    for report in reports:
        total += report
    return total


def _contexts(inputs: Sequence[StepInput], objective: AIALoss | None) -> tuple[AIAContext, ...]:
    return tuple(item.aia for item in inputs if objective is not None and item.aia is not None)


def sum_gradients(models: list[DistributedDataParallel], _: Any = None, **kwargs: Any) -> None:
    """Finish the gradients of a step: sums over data- and context-parallel ranks, no average.

    Takes the place of megatron-core's function, which would divide by the token count it is given.
    """
    finalize_model_grads(models, None, **kwargs)


def time_gradient_reduction(models: Sequence[Any], timers: StepTimers) -> None:
    """Time :func:`sum_gradients` of every step as ``gradient_reduction``."""
    core: Any = models[0].config  # the one the schedule reads
    reduce = core.finalize_model_grads_func

    def timed(*args: Any, **kwargs: Any) -> None:
        with timers.span("gradient_reduction"):
            reduce(*args, **kwargs)

    core.finalize_model_grads_func = timed


def _forward_step(
    spec: ModelSpec,
    terms: Sequence[LossTerm],
    inputs: Iterator[StepInput],
    model: torch.nn.Module,
) -> tuple[torch.Tensor | Outputs, Any]:
    item = next(inputs)
    output = spec.forward(model, item.batch, item.aia)
    return output, partial(_total_loss, terms, item)


def _total_loss(
    terms: Sequence[LossTerm], item: StepInput, outputs: Outputs
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the loss of a micro-batch, an unused count, and its part of the report.

    The count must be there: without it the schedule multiplies by the context-parallel size.

    Args:
        terms: of the loss.
        item: the micro-batch.
        outputs: of the last stage, for the tokens that this rank holds.
    """
    parts, rows = [], []
    for term in terms:
        target = item.batch.targets[term.target]
        values = term.values(outputs, item.batch, item.teacher).float()
        parts.append((values * item.coefficients[term.name]).sum())
        by_task = torch.zeros(NUM_TASKS, dtype=torch.float64, device=values.device)
        by_task.index_add_(0, target.tasks, (values.detach() * target.weights).double())
        rows.append(torch.cat([parts[-1].detach().double().reshape(1), by_task]))
    loss = torch.stack(parts).sum()
    return loss, torch.ones((), dtype=torch.int, device=loss.device), torch.stack(rows)
