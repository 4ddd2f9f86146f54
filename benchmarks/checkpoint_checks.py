"""What the checksums of a checkpoint cost beside saving and loading it, side by side in one run.

python benchmarks/checkpoint_checks.py [--hidden-size 1024] [--rounds 5]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from megatron_aia.checkpoint import writing
from megatron_aia.checkpoint.choose import choose_checkpoint
from megatron_aia.checkpoint.io import CheckpointIO
from megatron_aia.checkpoint.run_state import RunState, architecture
from megatron_aia.config import Config, ParallelConfig
from megatron_aia.models import build_preset, load_model_spec
from megatron_aia.runtime.parallel import create_parallel, initialize_process_group
from megatron_aia.training.optimizer import build_optimizer, build_scheduler
from megatron_aia.training.setup import build_models

ITERATION = 1


def configure(hidden_size: int) -> Config:
    """Return a model of 4 layers in one process."""
    config = build_preset("emu3_demo")
    model = replace(
        config.model,
        num_layers=4,
        hidden_size=hidden_size,
        ffn_hidden_size=3 * hidden_size,
        num_attention_heads=8,
        num_query_groups=8,
    )
    layout = ParallelConfig(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    return replace(config, model=model, parallel=layout)


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Add what the block takes."""
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


def timing(function: Callable[..., object], seconds: list[float]) -> Callable[..., object]:
    """Return ``function``, whose calls are timed."""

    def call(*args: object, **kwargs: object) -> object:
        with timed(seconds):
            return function(*args, **kwargs)

    return call


def main() -> None:
    """Save and load a few times and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config = configure(options.hidden_size)
    initialize_process_group(10)
    parallel = create_parallel(config.parallel, config.model.num_layers, config.run.seed)
    models = build_models(config, load_model_spec("emu3"), parallel)
    optimizer = build_optimizer(config, models, parallel)
    checkpoints = CheckpointIO(models, optimizer, build_scheduler(config, optimizer), parallel)
    model = architecture(config.model)
    state = RunState(ITERATION, 0, 0, "", model, checkpoints.layout(), "replicated")
    saves, sums, checked, unchecked, checks = ([] for _ in range(5))  # type: ignore[var-annotated]
    writing.sum_files_of_rank = timing(writing.sum_files_of_rank, sums)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            with timed(saves):
                path = checkpoints.begin(Path(folder), state, "").finish()
            for seconds, verify in ((unchecked, False), (checked, True)):
                with timed(seconds):
                    checkpoints.load(Path(folder), model, "replicated", (), True, verify)
            with timed(checks):
                choose_checkpoint(path)
        size = sum(file.stat().st_size for file in path.rglob("*")) / 1e9
    rows = {
        "save": saves,
        "of it the checksums": sums,
        "load weights, unchecked": unchecked,
        "load weights, checked": checked,
        "the check alone": checks,
    }
    print(f"{size:.3f} GB, medians of {options.rounds} rounds (lowest to highest)")
    for name, seconds in rows.items():
        print(
            f"{name:24} {statistics.median(seconds):7.3f} s ({min(seconds):.3f} to "
            f"{max(seconds):.3f}), {size / statistics.median(seconds):6.2f} GB/s"
        )


if __name__ == "__main__":
    main()
