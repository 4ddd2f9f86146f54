"""Flags of the commands that measure and fit. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional

from megatron_aia.config.value_types import POSITIONAL, PositiveFloat, PositiveInt
from megatron_aia.measurement.stages import Penalty

Dtype = Literal["bf16", "fp16", "fp32"]


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
class MeasureOptions:
    """Settings of tools/measure_intensity.py."""

    hf_path: Path
    """Folder of a Transformers model with its processor."""
    data_path: Path
    """Folder of shards; their understanding samples, stored as pictures, are read."""
    output: Path
    """Folder to make."""
    samples: PositiveInt = 100
    """Samples to measure, spread evenly over the data."""
    image_token_ids: tuple[int, ...] = ()
    """Ids of image tokens; unset, those that the model's configuration names."""
    max_length: Optional[PositiveInt] = None
    """Most tokens of a sample, longer ones are counted and left out; unset, the model's
    positions."""
    dtype: Dtype = "bf16"
    """Of the model."""
    name: Optional[str] = None
    """Of the model in files and figures; unset, that of its folder."""
