"""A checkpoint's model to draw and answer with, in any layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_aia.checkpoint.run_state import CONFIG_FILE, architecture
from megatron_aia.checkpoint.sharded import load_weights
from megatron_aia.config import AIAConfig, Config, ParallelConfig
from megatron_aia.generation.swap import decoding
from megatron_aia.models import load_model_spec, read_run_config
from megatron_aia.models.spec import MakesInference
from megatron_aia.runtime.device import device
from megatron_aia.runtime.parallel import Parallel, create_parallel, initialize_process_group


@dataclass(frozen=True)
class Writer:
    """A model that draws and answers, on this rank."""

    config: Config
    parallel: Parallel
    chunks: list[Any]
    """As ``decoding`` gives them."""


def inference_config(checkpoint: Path, parallel: ParallelConfig, bf16: bool) -> Config:
    """Return the configuration of a checkpoint's run, in another layout and for writing.

    Raises:
        ValueError: its settings cannot be read.
    """
    config = read_run_config(str(checkpoint / CONFIG_FILE))
    return replace(
        config,
        aia=AIAConfig(aia=False, aia_query_key_sets=config.aia.aia_query_key_sets),
        parallel=parallel,
        data=replace(config.data, packing=False),
        training=replace(config.training, bf16=bf16, fp8_format=None, freeze=()),
    )


def make_inference(config: Config) -> MakesInference:
    """Return how the family of a configuration writes.

    Raises:
        ValueError: it does not.
    """
    make = load_model_spec(config.model.model).inference
    if make is None:
        raise ValueError(f"--model {config.model.model} neither draws nor answers")
    return make


def load_chunks(checkpoint: Path, config: Config, parallel: Parallel) -> list[Any]:
    """Build this rank's chunks of a checkpoint's model, without gradients; every rank calls this.

    Args:
        checkpoint: one, or a folder of them, whose newest is taken.
        config: of ``inference_config``, perhaps changed.
        parallel: of its layout.

    Raises:
        ValueError: on every rank, if it is damaged or of another model.
    """
    spec = load_model_spec(config.model.model)
    chunks: list[Any] = [
        spec.build(config, parallel, stage) for stage in range(parallel.virtual_stages)
    ]
    for chunk in chunks:
        chunk.requires_grad_(False).to(device())
    load_weights(chunks, checkpoint, architecture(config.model), parallel.control)
    return chunks


@contextmanager
def open_writer(checkpoint: Path, config: Config) -> Iterator[Writer]:
    """Build a checkpoint's model to draw and answer with; as ``load_chunks``."""
    initialize_process_group(config.parallel.distributed_timeout_minutes)
    parallel = create_parallel(config.parallel, config.model.num_layers, config.run.seed)
    with decoding(load_chunks(checkpoint, config, parallel)) as unwrapped:
        yield Writer(config, parallel, unwrapped)
