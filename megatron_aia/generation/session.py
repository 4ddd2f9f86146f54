"""A model with its tokenisers, opened by the flags of a command, on every rank."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.checkpoint.run_state import read_state
from megatron_aia.config import Config
from megatron_aia.config.validate_model import (
    check_pipeline_parallel,
    check_tensor_parallel,
    check_world,
)
from megatron_aia.data.tokenizer import load_text_tokenizer
from megatron_aia.generation.decoder import chooser_of
from megatron_aia.generation.load import inference_config, make_inference, open_writer
from megatron_aia.generation.options import ModelOptions
from megatron_aia.generation.tokenizers import find_text_tokenizer, open_image_tokenizer
from megatron_aia.models import load_family
from megatron_aia.models.inference import Inference
from megatron_aia.runtime.device import has_cuda
from megatron_aia.runtime.parallel import Parallel
from megatron_aia.shards.image_tokenizer import ImageTokenizer


@dataclass(frozen=True)
class Session:
    """What every rank of a command has."""

    config: Config
    parallel: Parallel
    chunks: list[Any]
    inference: Inference
    images: ImageTokenizer | None
    """On the ranks that need it; see ``open_session``."""
    checkpoint: Path
    iteration: int
    """Of the checkpoint."""

    @property
    def model(self) -> tuple[list[Any], Inference, Parallel]:
        """The first arguments of ``draw_pictures`` and ``answer_questions``."""
        return self.chunks, self.inference, self.parallel

    @property
    def replica(self) -> int:
        """Number of the replica of the model that this rank belongs to."""
        return int(self.parallel.groups.dp_cp.rank())

    @property
    def replicas(self) -> int:
        """Number of replicas, which share the work."""
        return int(self.parallel.groups.dp_cp.size())

    @property
    def speaker(self) -> int:
        """Global rank that reads and writes files for its replica."""
        return chooser_of(self.parallel)

    @property
    def speaks_for_replica(self) -> bool:
        """Whether this rank is that one."""
        return dist.get_rank() == self.speaker


@contextmanager
def open_session(
    options: ModelOptions,
    world_size: int,
    draws: bool,
    system_prompt: str | None = None,
    image_area: int | None = None,
) -> Iterator[Session]:
    """Open a model; every rank calls this.

    Args:
        options: of the command.
        world_size: processes.
        draws: whether codes are made to pictures. Otherwise an image tokeniser is needed by a
            model only that looks at codes, and is left out where there is none.
        system_prompt: begins conversations; None: that of training.
        image_area: pixels of a picture that becomes codes; None: the image tokeniser's own.

    Raises:
        ValueError: something is missing, damaged or does not fit; naming the flag and a remedy.
    """
    if not options.load.is_dir():
        raise ValueError(f"--load {options.load} is not a folder; give one with a checkpoint")
    checkpoint = find_checkpoint(options.load)
    bf16 = has_cuda() if options.bf16 is None else options.bf16
    config = inference_config(checkpoint, options.parallel, bf16)
    load_family(config.model.model).check(config)
    check_tensor_parallel(config)
    check_pipeline_parallel(config)
    check_world(config, world_size)
    tokenizer = load_text_tokenizer(find_text_tokenizer(options.tokenizer, config, checkpoint))
    images = open_image_tokenizer(options.image_tokenizer, config, image_area)
    if draws and images is None:
        raise ValueError(
            f"{options.load} names no image tokeniser, which makes pictures of codes; pass "
            "--image-tokenizer (a model's folder, or a codebook *.npz)"
        )
    inference = make_inference(config)(config, tokenizer, images, system_prompt)
    with open_writer(checkpoint, config) as writer:
        yield Session(
            config,
            writer.parallel,
            writer.chunks,
            inference,
            images,
            checkpoint,
            read_state(checkpoint).iteration,
        )
