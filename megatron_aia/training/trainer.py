"""The run: assemble the parts, then step until the end."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from megatron_aia.aia.profile import LayerTargets, load_profile
from megatron_aia.checkpoint.folder import RunState, architecture, has_checkpoint
from megatron_aia.checkpoint.io import CheckpointIO
from megatron_aia.config import CheckpointConfig, Config
from megatron_aia.config.files import dump
from megatron_aia.config.validate_logging import run_folder
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.open import validation_config
from megatron_aia.models import load_model_spec
from megatron_aia.runtime.flight_recorder import keep_flight_records
from megatron_aia.runtime.log import configure_logging
from megatron_aia.runtime.parallel import (
    broadcast_failure,
    create_parallel,
    initialize_process_group,
)
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
from megatron_aia.training.replicas import DeadRunError, check_replicas
from megatron_aia.training.reporter import Reporter
from megatron_aia.training.samples import Sampler, samples_are_due
from megatron_aia.training.setup import build_data, build_models, build_teacher, loss_terms
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
        self.data = self._open_data(config)
        self.terms = loss_terms(config, self.spec, self.data.encoder)
        self.stop = _stop_signal(config.checkpoint)
        self.feed = SyncedLoader(config, self.data, self.parallel, self.stop)
        self.evaluator = self._build_evaluator()
        self.sampler = self._build_sampler()
        source, resumes = _find_start(config.checkpoint)
        self.models = build_models(config, self.spec, self.parallel, fresh_weights=source is None)
        self.teacher = build_teacher(config, self.spec, self.parallel, self.terms)
        self.optimizer = build_optimizer(config, self.models, self.parallel)
        self.scheduler = build_scheduler(config, self.optimizer)
        self.checkpoints = CheckpointIO(self.models, self.optimizer, self.scheduler, self.parallel)
        self.iteration = self.consumed_samples = self.total_skipped = self.data_start = 0
        self.skipped_in_a_row = 0
        self.step_learning_rate = math.nan
        self.start_note = "fresh weights"
        if source is not None:
            (self._resume if resumes else self._take_weights)(source)
        steps_left = max(config.training.train_iters - self.iteration, 0)
        self.data.mixture.check_length(self.position + steps_left * config.data.global_batch_size)
        self.size = model_size(self.models, self.parallel)
        self.timers = StepTimers()
        time_gradient_reduction(self.models, self.timers)
        peak, self.peak_note = peak_of_device(config)
        self.metrics = IntervalMetrics(
            config.model.num_layers, self.terms, self.targets, self.parallel, self.timers, peak
        )
        self.traces = Traces(config)
        self.reporter = self._open_reporter()

    @property
    def position(self) -> int:
        """Place of the next sample in the order of the data."""
        return self.consumed_samples - self.data_start

    def _build_evaluator(self) -> Evaluator | None:
        if not self.config.data.valid_data_path:
            return None
        config = validation_config(self.config)
        return Evaluator(
            config, self.spec, self.parallel, self.terms, self.targets, self._open_data(config)
        )

    def _build_sampler(self) -> Sampler | None:
        if not self.config.logging.sample_prompts:
            return None
        return Sampler(self.config, self.spec, self.parallel, self.data.encoder.tokenizer)

    def _open_data(self, config: Config) -> StepLoader:
        """Open the data on rank 0 first: it fills the caches that the other ranks then read."""
        data: StepLoader | None = None
        for opens_now in (dist.get_rank() == 0, dist.get_rank() != 0):
            error: Exception | None = None
            if opens_now:
                try:
                    data = build_data(config, self.spec, self.parallel)
                except (ValueError, OSError) as caught:
                    error = ValueError(str(caught))
            broadcast_failure(error, self.parallel.control)
        assert data is not None
        return data

    def _open_reporter(self) -> Reporter | None:
        """Open what rank 0 writes to."""
        reporter: Reporter | None = None
        error: Exception | None = None
        if dist.get_rank() == 0:
            try:
                reporter = Reporter(self.config, self.iteration)
            except OSError as caught:
                error = ValueError(f"--save or --tensorboard-dir cannot be written: {caught}")
        broadcast_failure(error, self.parallel.control)
        return reporter

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
            finally:
                self.feed.close()
                self.traces.close()
            if self.reporter:
                self.reporter.close()
            watchdog.at("waiting for all ranks to end")
            dist.barrier()

    def _train(self) -> None:
        train_iters = self.config.training.train_iters
        for model in self.models:
            model.train()
        first = self.iteration
        while self.iteration < train_iters:
            self.traces.before_step(self.iteration + 1)
            with self.timers.span("data", on_host=True):
                batches = self.feed.step(self.position)
            if self.feed.stops:
                if self.iteration > first and not self._is_save_step():
                    self._save()
                logger.info("stopped by a signal at iteration %d", self.iteration)
                break
            self._step(batches)
            if self._is_log_step():
                self._log()
            self._check_alive()
            if self.evaluator is not None and is_due(self.config, self.iteration):
                self._validate(self.evaluator)
            if self.sampler is not None and samples_are_due(self.config, self.iteration):
                self._sample(self.sampler)
            if self._is_save_step():
                with self.timers.span("save", on_host=True):
                    self._save()
        logger.info("data: %s", self.data.mixture.describe_drawn(self.position))

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
        self.iteration += 1
        self.consumed_samples += self.config.data.global_batch_size
        self.total_skipped += not updated
        self.skipped_in_a_row = 0 if updated else self.skipped_in_a_row + 1
        self.metrics.add(output, updated, grad_norm)

    def _check_alive(self) -> None:
        """End a run that learns nothing any more, or whose replicas have parted.

        Raises:
            DeadRunError: on every rank.
        """
        training, count = self.config.training, self.skipped_in_a_row
        if count >= training.max_skipped_in_a_row:
            if not self._is_log_step():
                self._log()
            raise DeadRunError(
                f"the gradient norm was not finite in {count} steps in a row (up to iteration "
                f"{self.iteration}), so nothing was learned; start again from a checkpoint before "
                "them, with a lower --lr or other data, or raise --max-skipped-in-a-row"
            )
        interval = training.check_weight_hash_across_dp_replicas_interval
        if interval and self.iteration % interval == 0:
            check_replicas(self.models, self.parallel)

    def _validate(self, evaluator: Evaluator) -> None:
        with self.timers.span("validation"):
            record = evaluator.run(self.models, self.teacher, self.iteration)
        if self.reporter:
            self.reporter.write_validation(record)

    def _sample(self, sampler: Sampler) -> None:
        with self.timers.span("samples"):
            samples = sampler.run(self.models)
        if self.reporter:
            self.reporter.write_samples(self.iteration, samples)

    def _is_log_step(self) -> bool:
        # The first step too: its intensities are those before training.
        last = self.config.training.train_iters
        interval = self.config.logging.log_interval
        return self.iteration in (1, last) or self.iteration % interval == 0

    def _is_save_step(self) -> bool:
        if not self.config.checkpoint.save:
            return False
        interval = self.config.checkpoint.save_interval
        is_last = self.iteration == self.config.training.train_iters
        return is_last or bool(interval and self.iteration % interval == 0)

    def _log(self) -> None:
        record = self.metrics.record(
            iteration=self.iteration,
            train_iters=self.config.training.train_iters,
            consumed_samples=self.consumed_samples,
            total_skipped=self.total_skipped,
            learning_rate=self.step_learning_rate,
            corrupt_samples=self.feed.corrupt_samples,
        )
        if self.reporter:
            self.reporter.write(record)

    def _save(self) -> None:
        assert self.config.checkpoint.save is not None
        start = time.monotonic()
        path = self.checkpoints.save(
            Path(self.config.checkpoint.save),
            RunState(
                iteration=self.iteration,
                consumed_samples=self.consumed_samples,
                total_skipped=self.total_skipped,
                data_fingerprint=self.data.fingerprint,
                model=architecture(self.config.model),
                layout=self.checkpoints.layout(),
                optimizer=_optimizer_kind(self.config),
                freeze=self.config.training.freeze,
                data_start=self.data_start,
            ),
            dump(self.config),
            # What was saved before steps were skipped may be the last that is good.
            0 if self.skipped_in_a_row else self.config.checkpoint.save_total_limit,
        )
        seconds = time.monotonic() - start
        self.stop.note_save(seconds)
        logger.info("saved %s in %.1f s", path, seconds)

    def _take_weights(self, folder: Path) -> None:
        state = self._load(folder, weights_only=True)
        self.start_note = f"weights of {folder} (iteration {state.iteration}), fresh optimizer"

    def _load(self, folder: Path, weights_only: bool) -> RunState:
        return self.checkpoints.load(
            folder,
            architecture(self.config.model),
            _optimizer_kind(self.config),
            self.config.training.freeze,
            weights_only,
            self.config.checkpoint.verify_checkpoint,
            self.config.checkpoint.load_fallback,
        )

    def _resume(self, folder: Path) -> None:
        state = self._load(folder, weights_only=False)
        if not state.optimizer:
            self.start_note = f"weights of {folder}, which holds no optimizer state"
            return
        self.iteration = state.iteration
        self.consumed_samples = state.consumed_samples
        self.data_start = self._find_data_start(folder, state)
        self.total_skipped = state.total_skipped
        self.start_note = f"{folder}, iteration {state.iteration}"
        if self.data_start != state.data_start:
            self.start_note += ", new data from its first sample (--reset-data)"
        if state.layout != self.checkpoints.layout():
            self.start_note += ", another layout: dropout continues from new random states"

    def _find_data_start(self, folder: Path, state: RunState) -> int:
        """Return at how many consumed samples the order of this run's data begins."""
        if state.data_fingerprint == self.data.fingerprint:
            return state.data_start
        if not self.config.checkpoint.reset_data:
            raise ValueError(
                f"--load {folder} was trained on other data, another mixture, tokeniser, "
                "--image-tokenizer, --seed, --seq-length, --task-ratio, --shuffle-window-shards, "
                "--cfg-drop-prob, --overlong-samples or --aia-query-key-sets, so its sample "
                "position means nothing here; restore them, or pass --reset-data to begin the new "
                "data at its first sample, or --finetune to start from its weights alone"
            )
        return state.consumed_samples

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
            if self.position:
                data.append(("data", self.data.mixture.describe_drawn(self.position)))
            self.reporter.banner(lines + data)


def _find_start(options: CheckpointConfig) -> tuple[Path | None, bool]:
    """Return where the first weights come from (None: drawn), and whether the run goes on there.

    A job that the cluster restarts has the same command line each time: where --load and --save
    are one folder, the first start finds it empty and that is no mistake.
    """
    source = options.load
    if source and source == options.save and not has_checkpoint(Path(source)):
        source = None
    if source and not options.finetune:
        return Path(source), True
    first_weights = source or options.pretrained_checkpoint
    return (Path(first_weights) if first_weights else None), False


def _stop_signal(options: CheckpointConfig) -> StopSignal:
    names = options.exit_signal if options.exit_signal_handler else ()
    return StopSignal(names, options.exit_duration_in_mins)


def _resolve_targets(config: Config) -> tuple[LayerTargets | None, str]:
    if not config.aia.aia:
        return None, "off"
    profile = load_profile(config.aia.aia_profile)
    targets = profile.resolve(config.model.num_layers, config.aia.aia_targets)
    return targets, profile.describe(config.model.num_layers)


def _optimizer_kind(config: Config) -> str:
    return "distributed" if config.parallel.use_distributed_optimizer else "replicated"
