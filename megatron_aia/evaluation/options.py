"""Flags of tools/evaluate.py. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Optional

from megatron_aia.config.value_types import PositiveInt
from megatron_aia.generation.options import DrawingOptions, ModelOptions


@dataclass(kw_only=True)
class EvaluateOptions(ModelOptions, DrawingOptions):
    """Settings of tools/evaluate.py."""

    benchmark: Literal["geneval", "dpg", "realunify", "lmms"]
    """Drawing: geneval, dpg. Understanding: lmms, tasks of lmms-eval. Both in turn: realunify, its
    UEG tasks step by step."""
    output: Path
    """Folder to make, or to go on with."""
    data: Optional[Path] = None
    """Of your copy of the benchmark: evaluation_metadata.jsonl (geneval), the folder of prompts
    (dpg), UEG_step.json (realunify)."""
    rewritten_prompts: Optional[Path] = None
    """JSON object, prompt to what is drawn in its place; the result says so."""
    limit: Optional[PositiveInt] = None
    """Only the first prompts or questions; the result says so."""
    score_command: Optional[str] = None
    """Command of the benchmark's own scorer, run when all is drawn, by a shell; {images}, {results}
    and {side} in it are the folder to score, the file to write and the side of a picture."""
    results: Optional[Path] = None
    """File that a scorer has written already, to be read."""
    tasks: tuple[str, ...] = (
        *("mme", "pope_full", "mmmu_val", "mmvp", "mmbench_en_dev_static", "mmvet"),
    )
    """Tasks of lmms-eval."""
    lmms_eval: str = "lmms-eval"
    """Command of lmms-eval, in an environment of its own that has tools/lmms_eval_plugin."""
    system_prompt: Optional[str] = None
    """Begins every conversation; unset, that of training."""
    max_new_tokens: PositiveInt = 512
    """Most tokens of an answer, where a task does not say it."""
