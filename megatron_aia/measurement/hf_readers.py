"""How Transformers models read samples: by a processor, as this project trains, or as ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.config import Config
from megatron_aia.data.sample import SampleEncoder
from megatron_aia.measurement.hf_model import MeasuredInputs
from megatron_aia.measurement.processor_inputs import (
    generation_inputs,
    has_template,
    understanding_inputs,
)
from megatron_aia.measurement.recorder import IntensityTerm
from megatron_aia.measurement.role_file import RoleFile
from megatron_aia.measurement.samples import InactiveSampleError, SampleFolder, read_sample
from megatron_aia.models.hugging_face import HFFormat
from megatron_aia.shards.raw_sample import CorruptSampleError

_ANY_CODE = 1 << 16
"""Codes are not read by a processor, so each that a shard can hold is allowed."""


@dataclass(frozen=True)
class ProcessorReader:
    """Writes samples by a model's processor and chat template."""

    processor: Any
    image_ids: Sequence[int]
    """Of the tokens that stand for an image."""
    max_length: int
    tasks: Sequence[Task]

    @property
    def prompts(self) -> str:
        """See ``ReadsSamples``."""
        if has_template(self.processor):
            return "by the processor's chat template"
        return "a line a turn, because the processor has no chat template"

    def read(self, index: SampleFolder, number: int, task: Task) -> MeasuredInputs:
        """See ``ReadsSamples``."""
        write = understanding_inputs if task == Task.UNDERSTANDING else generation_inputs
        try:
            raw = index.read(number, _ANY_CODE)
            return write(self.processor, raw, self.image_ids, self.max_length)
        except CorruptSampleError:
            raise InactiveSampleError("corrupt") from None


@dataclass(frozen=True)
class FamilyReader:
    """Writes samples as a family of this project does in training, codes and pictures alike."""

    model: PreTrainedModel
    config: Config
    hf_format: HFFormat
    encoder: SampleEncoder
    max_length: int
    tasks: Sequence[Task] = AIA_TASKS
    prompts: str = "as this project trains the model"

    @torch.no_grad()
    def read(self, index: SampleFolder, number: int, task: Task) -> MeasuredInputs:
        """See ``ReadsSamples``."""
        codebook_size = self.config.model.codebook_size
        sample = read_sample(index, number, task, self.encoder, codebook_size, self.max_length)
        seen = [torch.from_numpy(image.load()) for image in sample.tokens.images]
        inputs = self.hf_format.reference_inputs(
            self.model,
            self.config.model,
            torch.from_numpy(sample.tokens.tokens)[None].to(self.model.device),
            torch.stack(seen).to(self.model.device) if seen else None,
        )
        term = IntensityTerm(
            0, torch.from_numpy(sample.term.queries), torch.from_numpy(sample.term.keys)
        )
        return MeasuredInputs(inputs, term, len(sample.tokens), sample.images)


@dataclass(frozen=True)
class RoleReader:
    """Takes samples as somebody has tokenised them; their images are among the ids."""

    max_length: int
    tasks: Sequence[Task] = AIA_TASKS
    prompts: str = "as the role file has them"

    def read(self, index: SampleFolder, number: int, task: Task) -> MeasuredInputs:
        """See ``ReadsSamples``."""
        assert isinstance(index, RoleFile)
        ids, term = index.ids(number), index.term(number)
        if len(ids) > self.max_length:
            raise InactiveSampleError(f"longer than {self.max_length} tokens")
        positions = (torch.from_numpy(p) for p in (term.queries, term.keys))
        inputs = {"input_ids": torch.from_numpy(ids)[None]}
        return MeasuredInputs(inputs, IntensityTerm(0, *positions), len(ids), 1)
