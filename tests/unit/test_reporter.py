"""What the live figure compares: the start of the whole run and now."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_tensorboard import RECORD

from megatron_aia.aia.roles import Task
from megatron_aia.analysis import plots
from megatron_aia.models import build_preset
from megatron_aia.training.reporter import Reporter


def reporter(folder: Path, start: int) -> Reporter:
    config = build_preset("emu3_demo")
    logging = replace(
        config.logging, tensorboard_dir=str(folder / "tensorboard"), aia_figure_interval=1
    )
    checkpoint = replace(config.checkpoint, save=str(folder))
    return Reporter(replace(config, logging=logging, checkpoint=checkpoint), start)


def at(iteration: int, intensity: float) -> object:
    curve = {Task.GENERATION: np.array([intensity, 0.5])}
    return replace(RECORD, iteration=iteration, intensity=curve)


def test_the_figure_begins_with_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    original = plots.plot_intensity

    def keep(before, after, target, title, spread):
        drawn.append((before[Task.GENERATION][0], after[Task.GENERATION][0], title))
        return original(before, after, target, title, spread)

    monkeypatch.setattr(plots, "plot_intensity", keep)
    first = reporter(tmp_path, 0)
    for record in (at(1, 0.1), at(2, 0.2), at(3, 0.3)):
        first.write(record)
    first.close()
    resumed = reporter(tmp_path, 2)
    resumed.write(at(3, 0.4))
    resumed.close()
    assert drawn[-1] == (0.1, 0.4, "iterations 1 and 3")
    assert drawn[-2] == (0.1, 0.3, "iterations 1 and 3")


@pytest.mark.parametrize("kept", [None, "", "no record\n"])
def test_a_run_without_records_begins_now(kept: str | None, tmp_path: Path) -> None:
    if kept is not None:
        (tmp_path / "metrics.jsonl").write_text(kept)
    resumed = reporter(tmp_path, 5)
    resumed.write(at(6, 0.2))
    assert resumed._first is not None
    assert resumed._first.iteration == 6
    resumed.close()
