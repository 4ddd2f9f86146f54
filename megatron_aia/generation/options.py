"""Flags of the commands that let a model draw and answer. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from megatron_aia.config import ParallelConfig
from megatron_aia.config.value_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    PositiveShare,
)


@dataclass(kw_only=True)
class ModelOptions:
    """Which model, and how it is laid out over the processes of torchrun."""

    load: Path
    """Checkpoint, or the folder of a run, whose newest is taken."""
    tokenizer: Optional[Path] = None
    """Text tokeniser, file or folder; unset, that of the run."""
    image_tokenizer: Optional[Path] = None
    """What makes pictures of codes: a model's folder, or a codebook (*.npz); unset, that of the
    run."""
    tensor_model_parallel_size: PositiveInt = 1
    """Tensor-parallel processes."""
    pipeline_model_parallel_size: PositiveInt = 1
    """Pipeline stages."""
    num_layers_per_virtual_pipeline_stage: Optional[PositiveInt] = None
    """Layers of one model chunk, where a stage has several."""
    bf16: Optional[bool] = None
    """bfloat16 weights; unset, on a GPU only."""
    batch_size: PositiveInt = 8
    """Pictures or questions that a replica works on at a time."""
    seed: NonNegativeInt = 42
    """With prompt and image number, all that random choices depend on."""
    distributed_timeout_minutes: PositiveInt = 30
    """A collective that takes longer ends the command."""

    @property
    def parallel(self) -> ParallelConfig:
        """The layout; processes that are left are replicas, which share the work."""
        return ParallelConfig(
            tensor_model_parallel_size=self.tensor_model_parallel_size,
            pipeline_model_parallel_size=self.pipeline_model_parallel_size,
            num_layers_per_virtual_pipeline_stage=self.num_layers_per_virtual_pipeline_stage,
            distributed_timeout_minutes=self.distributed_timeout_minutes,
        )


@dataclass(kw_only=True)
class DrawingOptions:
    """How pictures are drawn; what is unset is as the model's authors draw."""

    guidance_scale: Optional[NonNegativeFloat] = None
    """Logits are u + scale (c - u), with and without the prompt; 1 is no guidance."""
    temperature: Optional[NonNegativeFloat] = None
    """Divides the logits; 0 always takes the most probable code."""
    top_k: Optional[NonNegativeInt] = None
    """Choose among so many most probable codes; 0: all."""
    top_p: Optional[PositiveShare] = None
    """Choose among the most probable codes that reach this probability together."""
    negative_prompt: Optional[str] = None
    """What guidance leads away from; "" is the dropped prompt of training."""
    prompt_suffix: Optional[str] = None
    """Text behind every prompt."""
    ratio: str = "1:1"
    """Width to height, for a model that draws several."""
    image_area: Optional[PositiveInt] = None
    """Pixels of a picture, for a model that draws several sizes."""


@dataclass(kw_only=True)
class GenerateOptions(ModelOptions, DrawingOptions):
    """Settings of tools/generate.py."""

    output: Path
    """Folder to make, or to go on with."""
    prompt: Optional[str] = None
    """One prompt."""
    prompts: Optional[Path] = None
    """File of prompts: one a line, or JSON lines (*.jsonl) with prompt, and with negative_prompt
    and ratio where they differ."""
    num_images: PositiveInt = 4
    """Pictures of each prompt."""


@dataclass(kw_only=True)
class AnsweringOptions:
    """How questions are answered."""

    system_prompt: Optional[str] = None
    """Begins every conversation; unset, that of training."""
    max_new_tokens: PositiveInt = 512
    """Most tokens of an answer."""
    temperature: NonNegativeFloat = 0.0
    """Divides the logits; 0 always takes the most probable token."""
    top_k: NonNegativeInt = 0
    """Choose among so many most probable tokens; 0: all."""
    top_p: PositiveShare = 1.0
    """Choose among the most probable tokens that reach this probability together."""


@dataclass(kw_only=True)
class ChatOptions(ModelOptions, AnsweringOptions):
    """Settings of tools/chat.py."""

    image: tuple[Path, ...] = ()
    """Pictures of the first question."""
    image_area: Optional[PositiveInt] = None
    """Pixels of a picture, for a model that looks at codes; unset, the image tokeniser's own."""
    ask: Optional[Path] = None
    """File of questions, JSON lines with key, text, images and options, in place of a terminal."""
    answers: Optional[Path] = None
    """File to make: JSON lines with key, answer and whether it is complete."""
