"""Flags of the commands that measure and fit. No torch."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, Optional

from megatron_aia.config import ParallelConfig
from megatron_aia.config.settings import flag
from megatron_aia.config.value_types import POSITIONAL, PositiveFloat, PositiveInt, PositiveShare
from megatron_aia.measurement.stages import Penalty

Dtype = Literal["bf16", "fp16", "fp32"]
TaskName = Literal["generation", "understanding"]


@dataclass(kw_only=True)
class FitOptions:
    """Settings of tools/fit_profile.py."""

    intensity: tuple[Path, ...]
    """Measured intensities: intensity.jsonl, its folder, or a CSV with the columns layer,
    generation, understanding, and generation_std, understanding_std if known. Together one curve
    of each task; the first has the depth of the profile."""
    output: Path
    """YAML file to write; a figure of the fit is drawn beside it."""
    stages: str = "auto"
    """Number of stages, or auto: the least n log(cost / n) + 3 K log n, at most 8."""
    joint: bool = True
    """Both tasks change at the same layers, as in the paper; else each has stages of its own."""
    penalty: Penalty = "l2"
    """What the distance of a layer from its stage costs; with huber a single wild layer is no
    stage."""
    round: PositiveFloat = 0.01
    """Targets are multiples of it; the paper's of 0.05."""
    delta: tuple[float, ...] = ()
    """Huber thresholds, one for all stages or one for each. Unset: the spread of the stage, from
    0.05 to 0.2."""
    base_profile: Optional[str] = None
    """Profile whose stages a task takes that was not measured."""
    name: Optional[str] = None
    """Of the profile; unset, that of the file."""
    figure: bool = True
    """Draw the fit over the curve, needs matplotlib."""


@dataclass(kw_only=True)
class CompareOptions:
    """Settings of tools/compare_intensity.py."""

    models: Annotated[tuple[str, ...], POSITIONAL] = ()
    """PATH or NAME=PATH of each measured model: intensity.jsonl, its folder, or a CSV."""
    output: Path
    """Folder of the figures."""
    overlay: bool = False
    """One panel a task with all models, as before and after; else one panel a model."""
    by_layer: bool = False
    """Number the layers; else models of all depths share the axis of relative depth."""
    profile: Optional[str] = None
    """Profile whose targets are drawn too."""
    run: Optional[Path] = None
    """Folder of a run: its intensities by layer and iteration are drawn as colours."""
    markdown: bool = False
    """Write the table in Markdown."""


@dataclass(kw_only=True)
class MeasuredModelOptions:
    """The model that is looked into, its samples and its layout."""

    hf_path: Optional[Path] = None
    """Folder of a Transformers model with its processor; in one process."""
    load: Optional[Path] = None
    """Checkpoint of this project, or the folder of a run, whose newest is taken."""
    data_path: Path
    """Samples held out from training: a folder of shards, or a file of records as
    tools/build_shards.py reads them (JSON, JSON lines, Parquet, tar), or a role file (*.jsonl) of
    ids with their queries and keys."""
    image_root: Optional[Path] = None
    """Where the image paths of records start; unset, in the working folder."""
    output: Path
    """Folder to make."""
    samples: PositiveInt = 100
    """Samples of each task, spread evenly over the data."""
    max_length: Optional[PositiveInt] = None
    """Most tokens of a sample, longer ones are counted and left out; unset, the model's
    positions."""
    dtype: Optional[Dtype] = None
    """Of the model; unset, bf16 on a GPU and fp32 on a CPU."""
    name: Optional[str] = None
    """Of the model in files and figures; unset, that of its folder, with the iteration of a run."""
    image_token_ids: tuple[int, ...] = ()
    """Ids of image tokens, as the processor or a role file has them; unset, those that the
    configuration names."""
    tokenizer: Optional[Path] = None
    """Text tokeniser of a model of this project, file or folder; unset, its own."""
    image_tokenizer: Optional[Path] = None
    """Makes the codes of pictures for a model of this project: a model's folder, or a codebook
    (*.npz); unset, its own."""
    tensor_model_parallel_size: PositiveInt = 1
    """With --load: tensor-parallel processes."""
    pipeline_model_parallel_size: PositiveInt = 1
    """With --load: pipeline stages."""
    num_layers_per_virtual_pipeline_stage: Optional[PositiveInt] = None
    """With --load: layers of one model chunk, where a stage has several."""
    context_parallel_size: PositiveInt = 1
    """With --load: processes that split each sequence."""
    sequence_parallel: bool = False
    """With --load: split norms and residuals over the tensor-parallel processes."""
    distributed_timeout_minutes: PositiveInt = 30
    """With --load: a collective that takes longer ends the command."""

    @property
    def parallel(self) -> ParallelConfig:
        """The layout; processes that are left are replicas, which share the samples."""
        names = (field.name for field in fields(ParallelConfig))
        return ParallelConfig(**{n: getattr(self, n) for n in names if hasattr(self, n)})

    @property
    def folder_name(self) -> str:
        """The name of the model's folder."""
        folder = self.load or self.hf_path
        assert folder is not None
        return folder.resolve().name


@dataclass(kw_only=True)
class MeasureOptions(MeasuredModelOptions):
    """Settings of tools/measure_intensity.py."""

    task: tuple[TaskName, ...] = ()
    """Tasks to measure; unset, all that the data has and the model can be measured on."""


@dataclass(kw_only=True)
class AlignmentOptions(MeasureOptions):
    """Settings of tools/measure_alignment.py."""

    neighbours: PositiveInt = 10
    """k: nearest neighbours that are compared."""
    text_layer: Literal["last", "same"] = "last"
    """Layer of the prompt's features: the last one, or that of the image's."""
    clamp: Optional[PositiveShare] = None
    """Clamp features to this quantile of their absolute values, as platonic-rep's 0.95; unset, they
    stay."""


def check_model_options(options: MeasuredModelOptions, world_size: int) -> None:
    """Refuse flags of another kind of model than the one that is named.

    Raises:
        ValueError: naming the flag.
    """
    if (options.hf_path is None) == (options.load is None):
        raise ValueError("pass either --hf-path FOLDER or --load CHECKPOINT")
    of_load = [field for field in fields(ParallelConfig) if hasattr(options, field.name)]
    unused = ["image_token_ids"] if options.load else [field.name for field in of_load]
    defaults = {field.name: field.default for field in fields(options)}
    for name in unused:
        if getattr(options, name) != defaults[name]:
            model = "--load" if options.load else "--hf-path"
            raise ValueError(f"{flag(name)} has no effect with {model}; leave it out")
    if options.hf_path and world_size > 1:
        raise ValueError("--hf-path is measured in one process; start it without torchrun")
