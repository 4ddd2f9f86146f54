"""Draw the figures of a finished demo run and print what training changed.

python tools/demo_report.py --run runs/demo --data data/demo --output runs/demo/figures
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.analysis.plots import plot_intensity, plot_losses, plot_reconstruction
from megatron_aia.analysis.records import LogRecord, read_records, task_name
from megatron_aia.building.demo import load_photographs
from megatron_aia.checkpoint.folder import find_checkpoint, has_checkpoint
from megatron_aia.checkpoint.run_state import CONFIG_FILE
from megatron_aia.config.files import read_yaml
from megatron_aia.models import families, load_family
from megatron_aia.models.family import DemoForm
from megatron_aia.runtime.log import quiet_imports
from megatron_aia.runtime.versions import check_versions
from megatron_aia.shards.folder import CODEBOOK_FILE
from megatron_aia.shards.residual_quantizer import load_quantizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Neither the best nor the worst: its PSNR is near the median of the demo's pictures.
PHOTOGRAPH = "astronaut"
EXIT_USER_ERROR = 2


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder with metrics.jsonl")
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {CODEBOOK_FILE}")
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures")
    options = parser.parse_args(arguments)
    try:
        records = read_records(options.run)
        figures = draw_run(records) | draw_images(options.run, options.data)
        options.output.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            path = options.output / f"{name}.png"
            figure.savefig(path)
            print(path)
        print(format_summary(records))
    except (ValueError, OSError) as error:
        print(f"demo_report: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def draw_run(records: Sequence[LogRecord]) -> "dict[str, Figure]":
    """Return the figures of a run by name; without AIA there is no intensity to draw."""
    figures = {"losses": plot_losses(records)}
    curves = {task: intensity_ends(records, task) for task in AIA_TASKS}
    before = {task: ends[0] for task, ends in curves.items() if ends}
    after = {task: ends[1] for task, ends in curves.items() if ends}
    if before:
        title = f"Cross-modal attention before and after {records[-1].iteration} iterations"
        figures["intensity"] = plot_intensity(before, after, records[-1].target, title)
    return figures


def draw_images(run: Path, data: Path) -> "dict[str, Figure]":
    """Return what the codebook makes of a picture, or what the model draws from a prompt."""
    demo = families()[0].demo
    if has_checkpoint(run):
        values = read_yaml(str(find_checkpoint(run) / CONFIG_FILE)).values
        demo = load_family(values["model"]).demo
    if demo is None:
        return {}
    if demo.num_pictures is not None:
        return {"redrawn": draw_from_memory(run, data)}
    return {"reconstruction": draw_reconstruction(data, demo)}


def draw_from_memory(run: Path, data: Path) -> "Figure":
    """Draw a training picture beside what the trained model draws, greedily, from its prompt."""
    check_versions()
    quiet_imports()
    from megatron_aia.analysis.redraw import redraw  # heavy: torch and megatron-core

    quantizer = load_quantizer(data / CODEBOOK_FILE)
    redrawn = redraw(run, data)
    caption = f'"{redrawn.prompt}": {redrawn.agreement:.0%} of {redrawn.codes.size} codes are equal'
    pictures = (quantizer.decode(codes) for codes in (redrawn.codes, redrawn.drawn))
    return plot_reconstruction(*pictures, caption, ("training picture", "drawn by the model"))


def draw_reconstruction(data: Path, demo: DemoForm) -> "Figure":
    """Draw one training picture beside what the codebook in ``data`` makes of it."""
    quantizer = load_quantizer(data / CODEBOOK_FILE)
    photograph = load_photographs(demo.grid_side)[PHOTOGRAPH]
    codes = quantizer.encode(photograph)
    decoded = quantizer.decode(codes)
    # The quantiser resizes before it encodes; its own loss shows only at equal size.
    encoded = photograph.convert("RGB").resize(decoded.size)
    rows, columns = codes.shape
    caption = (
        f"{PHOTOGRAPH}: {rows} x {columns} codes out of {quantizer.codebook_size}, "
        f"PSNR {psnr(np.asarray(encoded), np.asarray(decoded)):.1f} dB"
    )
    return plot_reconstruction(encoded, decoded, caption)


def format_summary(records: Sequence[LogRecord]) -> str:
    """Return a table: loss and distance to the target, at the two ends of the run, by task."""
    lines = [f"{'':15}{'next-token loss':>22}{'mean |intensity - target|':>29}"]
    for task in Task:
        losses = [r.losses["ntp"][task] for r in records if task in r.losses["ntp"]]
        if not losses:
            continue
        line = f"{task_name(task):15}{f'{losses[0]:.3f} -> {losses[-1]:.3f}':>22}"
        curves = intensity_ends(records, task)
        if curves:
            target = records[-1].target[task]
            first, last = (float(np.nanmean(np.abs(curve - target))) for curve in curves)
            line += f"{f'{first:.3f} -> {last:.3f}':>29}"
        lines.append(line)
    return "\n".join(lines)


def intensity_ends(
    records: Sequence[LogRecord], task: Task
) -> Optional[tuple[np.ndarray, np.ndarray]]:
    """Return the first and the last measured intensity ``[L]`` of a task, if it has any."""
    measured = [
        record.intensity[task]
        for record in records
        if task in record.intensity and not np.isnan(record.intensity[task]).all()
    ]
    return (measured[0], measured[-1]) if measured else None


def psnr(original: np.ndarray, copy: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two uint8 pictures of equal shape, in dB."""
    mean_square = float(np.mean((original.astype(float) - copy.astype(float)) ** 2))
    return float("inf") if mean_square == 0 else 10 * float(np.log10(255**2 / mean_square))


if __name__ == "__main__":
    sys.exit(main())
