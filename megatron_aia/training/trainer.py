"""The run: assemble the parts, then step until the end."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from megatron_aia.aia.profile import LayerTargets, load_profile
from megatron_aia.checkpoint.io import CheckpointIO
from megatron_aia.checkpoint.run_state import RunState, architecture
from megatron_aia.config import CheckpointConfig, Config
from megatron_aia.config.files import dump
from megatron_aia.config.validate_logging import run_folder
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.open import validation_config
from megatron_aia.data.replacements import UnreadableStep
from megatron_aia.models import load_model_spec
from megatron_aia.runtime.flight_recorder import keep_flight_records
from megatron_aia.runtime.log import configure_logging
from megatron_aia.runtime.parallel import create_parallel, initialize_process_group
from megatron_aia.runtime.timers import StepTimers
from megatron_aia.runtime.watchdog import watchdog
from megatron_aia.training.banner import describe_run
from megatron_aia.training.evaluator import Evaluator, is_due
from megatron_aia.training.instruments import peak_of_device
from megatron_aia.training.metrics import IntervalMetrics
from megatron_aia.training.model_size import model_size
from megatron_aia.training.optimizer import (
    apply_gradients,
    build_optimizer,
    build_scheduler,
    learning_rate,
)
from megatron_aia.training.progress import RunProgress, find_start, load_start, optimizer_kind
from megatron_aia.training.replicas import DeadRunError, check_replicas
from megatron_aia.training.reporter import open_reporter
from megatron_aia.training.samples import Sampler, samples_are_due
from megatron_aia.training.saver import Saver
from megatron_aia.training.setup import (
    build_models,
    build_teacher,
    loss_terms,
    open_data_in_turn,
)
from megatron_aia.training.step import run_step, time_gradient_reduction
from megatron_aia.training.stop_signal import StopSignal
from megatron_aia.training.synced_loader import SyncedLoader
from megatron_aia.training.traces import Traces

logger = logging.getLogger(__name__)


class Trainer:
    """One training run. The constructor is its assembly, in order; ``run`` is its loop.

    Args:
        config: complete and validated for the number of processes.

    Raises:
        ValueError: on every rank, if data, profile or checkpoint cannot be used; see the message.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        configure_logging()
        folder = run_folder(config)
        keep_flight_records(Path(folder) if folder else None)
        initialize_process_group(config.parallel.distributed_timeout_minutes)
        self.parallel = create_parallel(config.parallel, config.model.num_layers, config.run.seed)
        self.spec = load_model_spec(config.model.model)
        self.targets, self.profile_note = _resolve_targets(config)
        self.data = open_data_in_turn(config, self.spec, self.parallel)
        self.terms = loss_terms(config, self.spec, self.data.encoder)
        self.stop = _stop_signal(config.checkpoint)
        self.saver = Saver(config.checkpoint, config.training.train_iters, self.stop)
        self.feed = SyncedLoader(config, self.data, self.parallel, self.stop, self.saver)
        self.evaluator = self._build_evaluator()
        self.sampler = self._build_sampler()
        source, resumes = find_start(config.checkpoint)
        self.models = build_models(config, self.spec, self.parallel, fresh_weights=source is None)
        self.teacher = build_teacher(config, self.spec, self.parallel, self.terms)
        self.optimizer = build_optimizer(config, self.models, self.parallel)
        self.scheduler = build_scheduler(config, self.optimizer)
        self.checkpoints = CheckpointIO(self.models, self.optimizer, self.scheduler, self.parallel)
        self.progress, self.start_note = RunProgress(), "fresh weights"
        if source is not None:
            self.progress, self.start_note = load_start(
                config, self.checkpoints, self.data.fingerprint, source, resumes
            )
        self.step_learning_rate = math.nan
        self.data.mixture.check_length(self.progress.last_position(config))
        self.size = model_size(self.models, self.parallel)
        self.timers = StepTimers()
        time_gradient_reduction(self.models, self.timers)
        peak, self.peak_note = peak_of_device(config)
        self.metrics = IntervalMetrics(
            config.model.num_layers, self.terms, self.targets, self.parallel, self.timers, peak
        )
        self.traces = Traces(config)
        self.reporter = open_reporter(config, self.progress.iteration, self.parallel)

    def _build_evaluator(self) -> Evaluator | None:
        if not self.config.data.valid_data_path:
            return None
        config = validation_config(self.config)
        data = open_data_in_turn(config, self.spec, self.parallel)
        return Evaluator(config, self.spec, self.parallel, self.terms, self.targets, data)

    def _build_sampler(self) -> Sampler | None:
        if not self.config.logging.sample_prompts:
            return None
        return Sampler(self.config, self.spec, self.parallel, self.data.encoder.tokenizer)

    def run(self) -> None:
        """Train to ``train_iters``, reporting and saving on the way.

        Raises:
            UnreadableStep: on every rank, if the samples of a step cannot be read.
            DeadRunError: on every rank, if nothing is learned any more or replicas differ.
            CheckpointWriteError: if a checkpoint cannot be written.
        """
        self._announce()
        with watchdog.watch(self.config.parallel.distributed_timeout_minutes, dist.get_rank()):
            try:
                self._train()
            except (UnreadableStep, DeadRunError):
                self.saver.complete(keeps_older=True)
                raise
            finally:
                self.saver.abandon()
                self.feed.close()
                self.traces.close()
            if self.reporter:
                self.reporter.close()
            watchdog.at("waiting for all ranks to end")
            dist.barrier()

    def _train(self) -> None:
        train_iters, progress = self.config.training.train_iters, self.progress
        for model in self.models:
            model.train()
        first = progress.iteration
        while progress.iteration < train_iters:
            self.traces.before_step(progress.iteration + 1)
            with self.timers.span("data", on_host=True):
                batches = self.feed.step(progress.position)
            if not self.feed.is_writing:
                self._complete_save()
            if self.feed.stops:
                if progress.iteration > first and not self.saver.is_due(progress.iteration):
                    self._save()
                logger.info("stopped by a signal at iteration %d", progress.iteration)
                break
            self._step(batches)
            if self._is_log_step():
                self._log()
            self._check_alive()
            if self.evaluator is not None and is_due(self.config, progress.iteration):
                self._validate(self.evaluator)
            if self.sampler is not None and samples_are_due(self.config, progress.iteration):
                self._sample(self.sampler)
            if self.saver.is_due(progress.iteration):
                self._save()
        self._complete_save()
        logger.info("data: %s", self.data.mixture.describe_drawn(progress.position))

    def _step(self, batches: Sequence[MicroBatch]) -> None:
        with self.timers.span("forward_backward"):
            output = run_step(
                self.models,
                self.spec,
                self.terms,
                self.config,
                self.parallel,
                batches,
                self.targets,
                self.teacher,
            )
        with self.timers.span("optimizer"):
            updated, grad_norm = apply_gradients(self.optimizer, self.config.training.clip_grad)
        self.step_learning_rate = learning_rate(self.optimizer)
        self.scheduler.step(increment=1)
        self.progress.count(self.config.data.global_batch_size, updated)
        self.metrics.add(output, updated, grad_norm)

    def _check_alive(self) -> None:
        """End a run that learns nothing any more, or whose replicas have parted.

        Raises:
            DeadRunError: on every rank.
        """
        training, count = self.config.training, self.progress.skipped_in_a_row
        if count >= training.max_skipped_in_a_row:
            if not self._is_log_step():
                self._log()
            raise DeadRunError(
                f"the gradient norm was not finite in {count} steps in a row (up to iteration "
                f"{self.progress.iteration}), so nothing was learned; start again from a "
                "checkpoint before them, with a lower --lr or other data, or raise "
                "--max-skipped-in-a-row"
            )
        interval = training.check_weight_hash_across_dp_replicas_interval
        if interval and self.progress.iteration % interval == 0:
            check_replicas(self.models, self.parallel)

    def _validate(self, evaluator: Evaluator) -> None:
        with self.timers.span("validation"):
            record = evaluator.run(self.models, self.teacher, self.progress.iteration)
        if self.reporter:
            self.reporter.write_validation(record)

    def _sample(self, sampler: Sampler) -> None:
        with self.timers.span("samples"):
            samples = sampler.run(self.models)
        if self.reporter:
            self.reporter.write_samples(self.progress.iteration, samples)

    def _is_log_step(self) -> bool:
        # The first step too: its intensities are those before training.
        last = self.config.training.train_iters
        interval = self.config.logging.log_interval
        return self.progress.iteration in (1, last) or self.progress.iteration % interval == 0

    def _log(self) -> None:
        record = self.metrics.record(
            iteration=self.progress.iteration,
            train_iters=self.config.training.train_iters,
            consumed_samples=self.progress.consumed_samples,
            total_skipped=self.progress.total_skipped,
            learning_rate=self.step_learning_rate,
            corrupt_samples=self.feed.corrupt_samples,
        )
        if self.reporter:
            self.reporter.write(record)

    def _save(self) -> None:
        progress = self.progress
        state = RunState(
            iteration=progress.iteration,
            consumed_samples=progress.consumed_samples,
            total_skipped=progress.total_skipped,
            data_fingerprint=self.data.fingerprint,
            model=architecture(self.config.model),
            layout=self.checkpoints.layout(),
            optimizer=optimizer_kind(self.config),
            freeze=self.config.training.freeze,
            data_start=progress.data_start,
        )
        with self.timers.span("save", on_host=True):
            self.saver.save(self.checkpoints, state, dump(self.config), self._keeps_older())

    def _complete_save(self) -> None:
        if self.saver.has_begun:
            with self.timers.span("save", on_host=True):
                self.saver.complete(self._keeps_older())

    def _keeps_older(self) -> bool:
        # What was saved before steps were skipped may be the last that is good.
        return self.progress.skipped_in_a_row > 0

    def _announce(self) -> None:
        if self.reporter:
            notes = {
                "settings": self.reporter.settings,
                "AIA": self.profile_note,
                "start": self.start_note,
            }
            if self.config.logging.log_throughput:
                notes["MFU"] = self.peak_note
            lines = describe_run(self.config, self.parallel, self.models, self.size, notes)
            data = [("data", line.removeprefix("data: ")) for line in self.data.describe()]
            if self.progress.position:
                data.append(("data", self.data.mixture.describe_drawn(self.progress.position)))
            self.reporter.banner(lines + data)


def _stop_signal(options: CheckpointConfig) -> StopSignal:
    names = options.exit_signal if options.exit_signal_handler else ()
    # At the end one may still be written in the background, and the last one follows it.
    return StopSignal(names, options.exit_duration_in_mins, 2 if options.async_save else 1)


def _resolve_targets(config: Config) -> tuple[LayerTargets | None, str]:
    if not config.aia.aia:
        return None, "off"
    profile = load_profile(config.aia.aia_profile)
    targets = profile.resolve(config.model.num_layers, config.aia.aia_targets)
    return targets, profile.describe(config.model.num_layers)
