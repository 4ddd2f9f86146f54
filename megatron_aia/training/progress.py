"""Where a run stands, and where one begins: fresh, with weights, or where another stopped."""

from dataclasses import dataclass
from pathlib import Path

from megatron_aia.checkpoint.folder import has_checkpoint
from megatron_aia.checkpoint.io import CheckpointIO
from megatron_aia.checkpoint.run_state import RunState, architecture
from megatron_aia.config import CheckpointConfig, Config


@dataclass
class RunProgress:
    """What the steps of a run have come to."""

    iteration: int = 0
    """Steps done, skipped ones included."""
    consumed_samples: int = 0
    """Since the start of the run."""
    data_start: int = 0
    """``consumed_samples`` where the order of the present data began."""
    total_skipped: int = 0
    """Steps without an update."""
    skipped_in_a_row: int = 0
    """Up to the last step."""

    @property
    def position(self) -> int:
        """Place of the next sample in the order of the data."""
        return self.consumed_samples - self.data_start

    def last_position(self, config: Config) -> int:
        """Return ``position`` after the last step of the run."""
        steps = max(config.training.train_iters - self.iteration, 0)
        return self.position + steps * config.data.global_batch_size

    def count(self, samples: int, updated: bool) -> None:
        """Count one step."""
        self.iteration += 1
        self.consumed_samples += samples
        self.total_skipped += not updated
        self.skipped_in_a_row = 0 if updated else self.skipped_in_a_row + 1


def find_start(options: CheckpointConfig) -> tuple[Path | None, bool]:
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


def load_start(
    config: Config, checkpoints: CheckpointIO, data_fingerprint: str, source: Path, resumes: bool
) -> tuple[RunProgress, str]:
    """Load what ``find_start`` found; return where the run stands, and a line that tells it.

    Args:
        config: of the run.
        checkpoints: of the run.
        data_fingerprint: of what a position of the run's data means.
        source: folder to load.
        resumes: go on from there; else only its weights are taken.

    Raises:
        ValueError: it cannot be loaded, or its data was another.
    """
    state = checkpoints.load(
        source,
        architecture(config.model),
        optimizer_kind(config),
        config.training.freeze,
        not resumes,
        config.checkpoint.verify_checkpoint,
        config.checkpoint.load_fallback,
    )
    if not resumes:
        note = f"weights of {source} (iteration {state.iteration}), fresh optimizer"
        return RunProgress(), note
    if not state.optimizer:
        return RunProgress(), f"weights of {source}, which holds no optimizer state"
    data_start = _find_data_start(config, data_fingerprint, source, state)
    note = f"{source}, iteration {state.iteration}"
    if data_start != state.data_start:
        note += ", new data from its first sample (--reset-data)"
    if state.layout != checkpoints.layout():
        note += ", another layout: dropout continues from new random states"
    progress = RunProgress(state.iteration, state.consumed_samples, data_start, state.total_skipped)
    return progress, note


def optimizer_kind(config: Config) -> str:
    """Return ``RunState.optimizer`` of this run."""
    return "distributed" if config.parallel.use_distributed_optimizer else "replicated"


def _find_data_start(config: Config, data_fingerprint: str, source: Path, state: RunState) -> int:
    """Return at how many consumed samples the order of this run's data begins."""
    if state.data_fingerprint == data_fingerprint:
        return state.data_start
    if not config.checkpoint.reset_data:
        raise ValueError(
            f"--load {source} was trained on other data, another mixture, tokeniser, "
            "--image-tokenizer, --seed, --seq-length, --task-ratio, --shuffle-window-shards, "
            "--cfg-drop-prob, --overlong-samples or --aia-query-key-sets, so its sample "
            "position means nothing here; restore them, or pass --reset-data to begin the new "
            "data at its first sample, or --finetune to start from its weights alone"
        )
    return state.consumed_samples
