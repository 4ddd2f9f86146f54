"""A fitted profile as a YAML file that --aia-profile reads, and as a figure."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from megatron_aia.aia.profile import load_profile
from megatron_aia.aia.roles import AIA_TASKS
from megatron_aia.analysis.plots import TASK_COLORS, new_figure, style
from megatron_aia.analysis.records import task_name
from megatron_aia.measurement.fit import FittedProfile
from megatron_aia.runtime.atomic import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_profile(fitted: FittedProfile, path: Path) -> None:
    """Write a profile and how it was made, and read it back.

    Raises:
        ValueError: the name of the file does not end in .yaml, or it or its figure is there.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--output {path}: end the name in .yaml, as --aia-profile wants it")
    for place in (path, path.with_suffix(".png")):
        if place.exists():
            raise ValueError(f"--output: {place} is there; give another name or delete it")
    write_text(path, _yaml(fitted))
    load_profile(str(path))


def _yaml(fitted: FittedProfile) -> str:
    profile = fitted.profile
    comments = "".join(f"# {note}\n" for note in fitted.notes[1:])
    head = {"name": profile.name, "depth": profile.depth, "source": profile.source}
    lines = [comments + yaml.safe_dump(head, sort_keys=False, width=10_000) + "stages:"]
    for task, stages in profile.stages.items():
        lines.append(f"  {task_name(task)}:")
        for stage in stages:
            values = yaml.safe_dump(vars(stage), default_flow_style=True, sort_keys=False)
            lines.append(f"    - {values.strip()}")
    lines.append("curve:")
    for task, curve in profile.curve.items():
        values = yaml.safe_dump([round(float(value), 6) for value in curve], width=92)
        lines.append(f"  {task_name(task)}:")
        lines += [f"    {line}" for line in values.splitlines()]
    return "\n".join(lines) + "\n"


def plot_fit(fitted: FittedProfile) -> "Figure":
    """Draw the stages of each task over its measured curve, with the threshold as a band."""
    profile = fitted.profile
    figure = new_figure(9.0, 4.0)
    panels = figure.subplots(1, len(AIA_TASKS), sharey=True)
    targets = profile.resolve(profile.depth)
    layers = np.arange(profile.depth)
    edges = np.arange(profile.depth + 1) - 0.5
    for axes, task in zip(panels, AIA_TASKS, strict=True):
        target, delta = targets.target[task], targets.delta[task]
        axes.stairs(
            target + delta,
            edges,
            baseline=target - delta,
            fill=True,
            color="#DDDDDD",
            label="target ± delta",
        )
        axes.stairs(target, edges, baseline=None, color="black", linewidth=1.8, label="target")
        if task in profile.curve:
            color = TASK_COLORS[task]
            axes.plot(layers, profile.curve[task], color=color, marker="o", ms=4, label="measured")
        axes.set_title(task_name(task))
        axes.set_xlabel("decoder layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
        style(axes)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("intensity (share of attention)")
    figure.suptitle(f"profile {profile.name}, {profile.depth} layers")
    return figure
