"""What tools/measure_intensity.py and tools/measure_alignment.py do, behind their flags."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from megatron_aia.analysis.records import task_name
from megatron_aia.measurement.alignment import TaskFeatures, align_layers
from megatron_aia.measurement.figures import plot_alignment
from megatron_aia.measurement.opened import Opened, open_for
from megatron_aia.measurement.options import AlignmentOptions, MeasureOptions
from megatron_aia.measurement.own_features import collect_own_features
from megatron_aia.measurement.own_intensity import measure_own
from megatron_aia.measurement.summary import (
    Measurement,
    check_enough,
    check_new_folder,
    count_reasons,
    write_measurement,
)
from megatron_aia.runtime.atomic import write_text

ALIGNMENT_FILE = "alignment.json"


def measure_model(options: MeasureOptions, world_size: int) -> str:
    """Measure the intensities of a model; every rank calls this.

    Returns:
        Lines for the user.

    Raises:
        ValueError: on every rank; one line with a remedy.
    """
    check_new_folder(options.output)
    opened = open_for(options, world_size)
    samples = (opened.name, opened.index, opened.chosen)
    with opened.progress() as bar:
        if opened.own is not None:
            found = measure_own(opened.own, *samples, bar.update)
        else:
            from megatron_aia.measurement.hf_model import measure_hf

            found = measure_hf(opened.hf, *samples, bar.update)
    return opened.finish(lambda: _write_intensity(options, opened, found))


def _write_intensity(options: MeasureOptions, opened: Opened, found: Measurement) -> str:
    check_enough(found)
    summary = write_measurement(options.output, found, opened.conditions)
    lines = []
    for task, part in summary["tasks"].items():
        known = [mean for mean in part["mean"] if mean is not None]
        error = part["largest_standard_error"]
        lines.append(_count_line(task, part["samples"], part["inactive"]))
        lines.append(
            f"mean {sum(known) / len(known):.3f}, largest standard error "
            f"{'-' if error is None else format(error, '.3f')}"
        )
    files = f"wrote {options.output}/intensity.jsonl, {options.output}/summary.json"
    return "\n".join([*lines, files])


def _count_line(task: str, samples: int, inactive: Mapping[str, int]) -> str:
    left_out = "".join(f"; {count} {reason}" for reason, count in inactive.items())
    return f"{task}: {samples} of {samples + sum(inactive.values())} samples measured{left_out}"


def align_model(options: AlignmentOptions, world_size: int) -> str:
    """Measure the alignment of image and text features by layer; every rank calls this.

    Returns:
        Lines for the user.

    Raises:
        ValueError: on every rank; one line with a remedy.
    """
    if (options.output / ALIGNMENT_FILE).exists():
        raise ValueError(f"--output {options.output} holds a measurement; give another folder")
    opened = open_for(options, world_size)
    samples = (opened.index, opened.chosen)
    with opened.progress() as bar:
        if opened.own is not None:
            found = collect_own_features(opened.own, *samples, bar.update)
        else:
            from megatron_aia.measurement.hf_features import collect_hf_features

            found = collect_hf_features(opened.hf, *samples, bar.update)
    return opened.finish(lambda: _write_alignment(options, opened, found))


def _write_alignment(
    options: AlignmentOptions, opened: Opened, features: Sequence[TaskFeatures]
) -> str:
    tasks: dict[str, dict[str, Any]] = {}
    lines = []
    for found in features:
        task, samples, k = task_name(found.task), len(found.samples), options.neighbours
        inactive = count_reasons(task, found.inactive, samples)
        if k >= samples:
            raise ValueError(
                f"--neighbours {k}: {samples} samples of {task}, each with {samples - 1} others; "
                "lower it, or raise --samples"
            )
        layers = align_layers(found, k, options.text_layer == "same", options.clamp)
        tasks[task] = {
            "samples": samples,
            "inactive": inactive,
            "inactive_samples": dict(found.inactive),
            "chance": k / (samples - 1),
            "alignment": layers,
        }
        lines.append(_count_line(task, samples, inactive))
        best = int(np.argmax(layers))
        lines.append(
            f"alignment {layers[0]:.3f} in the first layer, {layers[-1]:.3f} in the last, highest "
            f"{layers[best]:.3f} in layer {best}; by chance {k / (samples - 1):.3f}"
        )
    settings = {
        "neighbours": options.neighbours,
        "text_layer": options.text_layer,
        "clamp": options.clamp,
        "normalisation": "unit length",
    }
    document = {**opened.conditions, **settings, "tasks": tasks}
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / ALIGNMENT_FILE
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
    figure = options.output / "alignment.png"
    plot_alignment(opened.name, tasks).savefig(figure)
    return "\n".join([*lines, f"wrote {path}, {figure}"])
