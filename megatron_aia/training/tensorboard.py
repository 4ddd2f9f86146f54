"""TensorBoard events of a run: the values of every log record, figures and the configuration."""

import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.analysis.records import LogRecord, task_name
from megatron_aia.analysis.samples import ShownSample
from megatron_aia.analysis.validation import ValidationRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TensorBoardLog:
    """Writes log records of one run to ``folder``; the horizontal axis is the iteration."""

    def __init__(self, folder: Path, start_iteration: int = 0) -> None:
        """Open a new events file.

        Args:
            folder: made if missing; may hold the events of the same run before a resume.
            start_iteration: the iteration that the run resumes from. Points after it were written
                by an abandoned continuation, and TensorBoard no longer shows them.
        """
        purge_step = start_iteration + 1 if start_iteration else None
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._has_layout = False

    def write(self, record: LogRecord) -> None:
        """Add a point to every curve whose value exists in ``record``."""
        if record.target and not self._has_layout:
            self._writer.add_custom_scalars(_chart_layout(record))
            self._has_layout = True
        for name, value in _scalars(record):
            if not math.isnan(value):
                self._writer.add_scalar(name, value, record.iteration)

    def write_validation(self, record: ValidationRecord) -> None:
        """Add a point to every curve of the validation."""
        values = [("valid/total", record.loss)]
        for term, value in record.terms.items():
            values.append((f"valid/{term}", value))
            by_task = record.losses[term].items()
            values += [(f"valid/{term}_{task_name(task)}", part) for task, part in by_task]
        for task, curve in record.intensity.items():
            tags = (f"valid_{_intensity_tag(task, layer)}" for layer in range(len(curve)))
            values += zip(tags, map(float, curve), strict=True)
        for name, value in values:
            if not math.isnan(value):
                self._writer.add_scalar(name, value, record.iteration)

    def figure(self, name: str, figure: "Figure", iteration: int) -> None:
        """Add a picture of ``figure`` under ``name``."""
        self._writer.add_figure(name, figure, iteration)

    def write_sample(self, sample: ShownSample, iteration: int) -> None:
        """Show what the model has drawn or answered, on the pages of images and of texts."""
        name = f"samples/{sample.number:02d}"
        words = sample.asked
        if sample.picture is not None:
            self._writer.add_image(name, np.asarray(sample.picture), iteration, dataformats="HWC")
        else:
            seen = f" ({sample.looked_at})" if sample.looked_at else ""
            words = f"{words}{seen}\n\n{sample.answer}"
        self._writer.add_text(name, words, iteration)

    def text(self, config_yaml: str) -> None:
        """Show the resolved configuration on the text page, in its own layout."""
        self._writer.add_text("config", textwrap.indent(config_yaml, "    "))

    def close(self) -> None:
        """Write what is still buffered and close the events file."""
        self._writer.close()


def _scalars(record: LogRecord) -> Iterator[tuple[str, float]]:
    yield "loss/total", record.loss
    for term, value in record.terms.items():
        yield f"loss/{term}", value
        for task, task_value in record.losses[term].items():
            yield f"loss/{term}_{task_name(task)}", task_value
    yield "train/learning_rate", record.learning_rate
    yield "train/grad_norm", record.grad_norm
    yield "train/skipped_iterations", record.skipped_iterations
    yield "train/total_skipped", record.total_skipped
    yield "train/consumed_samples", record.consumed_samples
    yield "train/corrupt_samples", record.corrupt_samples
    yield "throughput/tokens_per_second", record.tokens_per_second
    yield "throughput/seconds_per_iteration", record.seconds_per_iteration
    yield "throughput/padding_fraction", record.padding_fraction
    yield "throughput/tflops_per_device", record.tflops_per_device
    yield "throughput/aia_tflops_per_device", record.aia_tflops_per_device
    yield "throughput/mfu", record.mfu
    yield "ranks/slowest", record.slowest_rank if record.phases else math.nan
    yield "ranks/spread", record.rank_spread
    yield from ((f"seconds/{phase}", value) for phase, value in record.phases.items())
    yield from ((f"memory_gib/{kind}", value / 2**30) for kind, value in record.memory.items())
    for task, curve in record.intensity.items():
        yield from ((_intensity_tag(task, layer), value) for layer, value in enumerate(curve))
    for task, curve in record.target.items():
        yield from ((_target_tag(task, layer), value) for layer, value in enumerate(curve))
        if task in record.intensity:
            distance = np.abs(record.intensity[task] - curve)
            yield f"intensity_distance/{task_name(task)}", _mean_of_known(distance)


def _mean_of_known(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _intensity_tag(task: Task, layer: int) -> str:
    return f"intensity_{task_name(task)}/layer_{layer:02}"


def _target_tag(task: Task, layer: int) -> str:
    return f"intensity_{task_name(task)}_target/layer_{layer:02}"


def _chart_layout(record: LogRecord) -> dict[str, dict[str, list[Any]]]:
    """Return the charts of the custom scalars page: a layer's intensity lies over its target.

    Tags are regular expressions there, so each ends in ``$`` to match nothing longer.
    """
    names = [task_name(task) for task in AIA_TASKS]
    layout = {
        "loss": {
            f"{term.upper()} by task": ["Multiline", [f"loss/{term}_{name}$" for name in names]]
            for term in record.losses
        }
    }
    for task, curve in record.target.items():
        layout[f"intensity and target, {task_name(task)}"] = {
            f"layer {layer:02}": [
                "Multiline",
                [f"{_intensity_tag(task, layer)}$", f"{_target_tag(task, layer)}$"],
            ]
            for layer in range(len(curve))
        }
    return layout
