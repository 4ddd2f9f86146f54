"""Validation while training: the same samples every time, normalised as one batch."""

from collections.abc import Iterator, Sequence

from megatron.core.distributed import DistributedDataParallel

from megatron_aia.aia.profile import LayerTargets
from megatron_aia.analysis.validation import ValidationRecord
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.replacements import CorruptSamplesFound, UnreadableStep
from megatron_aia.models.losses import LossTerm
from megatron_aia.models.spec import ModelSpec
from megatron_aia.runtime.parallel import Parallel, broadcast_failure, gather_parameters
from megatron_aia.runtime.watchdog import watchdog
from megatron_aia.training.counts import StepCounts, count_step
from megatron_aia.training.loss_sums import LossSums
from megatron_aia.training.step import (
    aia_objective,
    ask_teacher,
    plan_step,
    run_validation_step,
)
from megatron_aia.training.teacher import Teacher


class Evaluator:
    """Measures losses and intensities on the first samples of the validation data.

    All of them count as one batch, whose normalisers do not depend on the layout nor on how many
    steps it takes; so every loss is that of a training step of that size. Nothing that training
    reads is changed: no gradient, no random state, no position.

    Args:
        config: that opens the validation data.
        spec: of the model family.
        parallel: of the run.
        terms: of the loss.
        targets: of the AIA term; None leaves it off.
        batches: of this rank.

    Raises:
        ValueError: on every rank, if a sample is corrupt or cannot be read: all are read here once.
    """

    def __init__(
        self,
        config: Config,
        spec: ModelSpec,
        parallel: Parallel,
        terms: Sequence[LossTerm],
        targets: LayerTargets | None,
        batches: StepLoader,
    ) -> None:
        self._config, self._spec, self._parallel = config, spec, parallel
        self._terms, self._targets, self._batches = terms, targets, batches
        parts = [count_step(batches, terms, parallel.groups.dp) for batches in self._steps()]
        self._counts: StepCounts = sum(parts[1:], start=parts[0])

    def run(
        self,
        models: list[DistributedDataParallel],
        teacher: Teacher | None,
        iteration: int,
    ) -> ValidationRecord:
        """Return what the model says of the validation data; every rank calls this together.

        Args:
            models: this rank's chunks, after an update.
            teacher: if a loss term asks for one.
            iteration: steps done.

        Raises:
            UnreadableStep: on every rank, if a sample cannot be read any more.
        """
        gather_parameters(models)
        for model in models:
            model.eval()
        sums = self._measure(models, teacher)
        for model in models:
            model.train()
        means = sums.mean(1)
        return ValidationRecord(
            iteration=iteration,
            samples=self._config.training.eval_iters * self._config.data.global_batch_size,
            loss=sum(means.terms.values()),
            terms=means.terms,
            losses=means.losses,
            intensity=means.intensities.intensity if self._targets is not None else {},
        )

    def _measure(self, models: list[DistributedDataParallel], teacher: Teacher | None) -> LossSums:
        config, parallel, terms = self._config, self._parallel, self._terms
        counts = self._counts
        objective = aia_objective(config, counts, self._targets)
        has_aia = self._targets is not None
        sums = LossSums(config.model.num_layers, terms, has_aia, parallel)
        for number, batches in enumerate(self._steps()):
            inputs = plan_step(batches, self._spec, terms, config, parallel, counts, objective)
            ask_teacher(teacher, inputs)
            output = run_validation_step(
                models, self._spec, terms, config, inputs, counts, objective
            )
            # The counts are those of all steps together.
            (sums.add_part if number else sums.add)(output)
        return sums

    def _steps(self) -> Iterator[list[MicroBatch]]:
        for number in range(self._config.training.eval_iters):
            watchdog.at("validation")
            error: Exception | None = None
            batches: list[MicroBatch] = []
            try:
                batches = self._batches.step(number * self._config.data.global_batch_size)
            except CorruptSamplesFound as found:
                names = "; ".join(sample.reason for sample in found.samples)
                error = ValueError(
                    f"--valid-data-path: corrupt samples: {names}; tools/verify_shards.py finds "
                    "all, and validation takes no others in their place"
                )
            except (ValueError, OSError) as caught:
                error = ValueError(f"--valid-data-path: {caught}")
            try:
                broadcast_failure(error, self._parallel.control)
            except ValueError as failure:
                raise UnreadableStep(str(failure)) from error
            yield batches


def is_due(config: Config, iteration: int) -> bool:
    """Return whether a validation follows step ``iteration``."""
    last = iteration == config.training.train_iters
    return bool(config.data.valid_data_path) and (
        last or iteration % config.training.eval_interval == 0
    )
