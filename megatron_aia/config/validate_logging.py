"""Checks of what a run shows of itself."""

from pathlib import Path

from megatron_aia.config.tree import Config, LoggingConfig


def check_logging(config: Config, world_size: int, has_gpu: bool) -> None:
    """Check that samples and traces can be written.

    Raises:
        ValueError: naming the flag, its value and a remedy.
    """
    logging = config.logging
    if logging.sample_prompts is not None:
        if not Path(logging.sample_prompts).is_file():
            raise ValueError(f"--sample-prompts {logging.sample_prompts} is not a file")
        if run_folder(config) is None:
            raise ValueError(
                "--sample-prompts has no folder to write to; add --tensorboard-dir or --save"
            )
    if logging.profiles and run_folder(config) is None:
        name = "--profile" if logging.profile else "--record-memory-history"
        raise ValueError(f"{name} has no folder to write to; add --tensorboard-dir or --save")
    if logging.record_memory_history and not has_gpu:
        raise ValueError(
            "--record-memory-history records a GPU's memory and there is none; leave it out"
        )
    if not logging.profiles:
        return
    if logging.profile_step_end <= logging.profile_step_start:
        raise ValueError(
            f"--profile-step-end {logging.profile_step_end} is not after --profile-step-start "
            f"{logging.profile_step_start}; use {logging.profile_step_start + 1} or more"
        )
    for rank in logging.profile_ranks:
        if rank >= world_size:
            raise ValueError(
                f"--profile-ranks {rank} does not exist: there are {world_size} processes; "
                f"use {world_size - 1} or less"
            )


def notes_on_logging(config: Config) -> list[str]:
    """Return a line for every setting that will have no effect."""
    logging = config.logging
    notes = []
    if logging.sample_interval != LoggingConfig.sample_interval and not logging.sample_prompts:
        notes.append("--sample-interval has no effect without --sample-prompts")
    if logging.profile and logging.profile_step_start > config.training.train_iters:
        notes.append(
            f"--profile has no effect: step {logging.profile_step_start} is after the last, "
            f"{config.training.train_iters}"
        )
    return notes


def run_folder(config: Config) -> str | None:
    """Return the folder that traces go to: TensorBoard's, else that of checkpoints."""
    return config.logging.tensorboard_dir or config.checkpoint.save
