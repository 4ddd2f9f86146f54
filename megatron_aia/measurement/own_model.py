"""A checkpoint of this project, opened to look into: forward passes alone, in any layout."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.transformer.module import Float16Module

from megatron_aia.aia.inject import AIAContext
from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.checkpoint.run_state import architecture, read_state
from megatron_aia.config import Config
from megatron_aia.config.layout import length_multiple
from megatron_aia.config.validate_model import (
    check_context_parallel,
    check_pipeline_parallel,
    check_tensor_parallel,
    check_world,
)
from megatron_aia.data.batch import MicroBatch, build_micro_batch, slice_for_rank
from megatron_aia.data.sample import SampleEncoder, TokenizedSample
from megatron_aia.data.tokenizer import load_text_tokenizer
from megatron_aia.generation.load import inference_config, load_chunks
from megatron_aia.generation.tokenizers import find_text_tokenizer, open_image_tokenizer
from megatron_aia.measurement.options import MeasuredModelOptions
from megatron_aia.models import load_family, load_model_spec
from megatron_aia.models.spec import ModelSpec
from megatron_aia.runtime.device import device, send
from megatron_aia.runtime.parallel import Parallel, create_parallel, initialize_process_group


@dataclass(frozen=True)
class OwnModel:
    """A model on this rank, and how it reads samples."""

    config: Config
    spec: ModelSpec
    parallel: Parallel
    chunks: list[Any]
    """In eval mode."""
    encoder: SampleEncoder
    max_length: int
    """Most tokens of a sample."""
    iteration: int
    """Of the checkpoint."""

    @property
    def config_hash(self) -> str:
        """Twelve digits that tell architectures and iterations apart."""
        text = json.dumps([architecture(self.config.model), self.iteration], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @torch.no_grad()
    def forward(self, samples: Sequence[TokenizedSample | None]) -> list[AIAContext]:
        """Run each sample as a micro-batch; every rank of the replica calls this.

        Args:
            samples: whole, their images loaded; None is a micro-batch of padding. Interleaved
                stages need a multiple of the pipeline size.

        Returns:
            By sample, the intensities of the layers that this rank holds.
        """
        multiple = length_multiple(self.config)
        longest = max([1, *(len(sample) for sample in samples if sample is not None)])
        length = -(-longest // multiple) * multiple
        inputs = [self._input(sample, length) for sample in samples]
        get_forward_backward_func()(
            forward_step_func=partial(_forward_step, self.spec),
            data_iterator=[iter(inputs) for _ in self.chunks],
            model=self.chunks,
            num_microbatches=len(inputs),
            seq_length=length,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
        return [aia for _, aia in inputs]

    def _input(self, sample: TokenizedSample | None, length: int) -> tuple[MicroBatch, AIAContext]:
        groups = self.parallel.groups
        batch = build_micro_batch(
            [[] if sample is None else [sample]],
            length,
            self.encoder.pad_id,
            self.encoder.image_size if self.parallel.has_embedding(0) else 0,
            targets=self.encoder.targets,
            lane=0 if sample is None else self.encoder.lane(sample.task),
        )
        aia = AIAContext(batch.segments, None, self.config.model.num_attention_heads, groups.tp_cp)
        place = (self.parallel.context_rank, self.parallel.context_size)
        # Nothing is learned, so no head has to compute anything.
        held, _ = slice_for_rank(replace(batch, targets={}), *place)
        held = replace(held, places=self.spec.places(self.config, held, *place))
        return held.map(lambda tensor: send(tensor, device())), aia


def open_own_model(options: MeasuredModelOptions, world_size: int) -> OwnModel:
    """Open the checkpoint at ``--load``; every rank calls this.

    Raises:
        ValueError: on every rank, if something is missing, damaged or does not fit; naming the flag
            and a remedy.
    """
    assert options.load is not None
    if not options.load.is_dir():
        raise ValueError(f"--load {options.load} is not a folder; give one with a checkpoint")
    checkpoint = find_checkpoint(options.load)
    config = _config(options, checkpoint)
    load_family(config.model.model).check(config)
    check_tensor_parallel(config)
    check_context_parallel(config)
    check_pipeline_parallel(config)
    check_world(config, world_size)
    spec = load_model_spec(config.model.model)
    tokenizer = load_text_tokenizer(find_text_tokenizer(options.tokenizer, config, checkpoint))
    images = open_image_tokenizer(options.image_tokenizer, config, spec.image_area(config))
    encoder = spec.encoder(config, tokenizer, images)
    initialize_process_group(config.parallel.distributed_timeout_minutes)
    parallel = create_parallel(config.parallel, config.model.num_layers, config.run.seed)
    chunks = load_chunks(checkpoint, config, parallel)
    if config.training.bf16:
        chunks = [Float16Module(chunk.config, chunk) for chunk in chunks]
    return OwnModel(
        config,
        spec,
        parallel,
        [chunk.eval() for chunk in chunks],
        encoder,
        options.max_length or config.model.max_position_embeddings,
        read_state(checkpoint).iteration,
    )


def _config(options: MeasuredModelOptions, checkpoint: Path) -> Config:
    """Return the run's configuration in another layout, with an attention that measures."""
    if options.dtype == "fp16":
        raise ValueError("--dtype fp16: checkpoints of this project are read in bf16 or fp32")
    config = inference_config(checkpoint, options.parallel, options.dtype == "bf16")
    aia = replace(config.aia, aia=True, aia_attention="auto")
    config = replace(config, aia=aia)
    # Rows are as long as their samples need; this is only what the layout is checked with.
    return replace(config, data=replace(config.data, seq_length=length_multiple(config)))


def _forward_step(
    spec: ModelSpec, inputs: Iterator[tuple[MicroBatch, AIAContext]], model: torch.nn.Module
) -> tuple[Any, Any]:
    batch, aia = next(inputs)
    return spec.forward(model, batch, aia), lambda output, non_loss_data: None
