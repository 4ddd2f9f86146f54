"""Measured models side by side: the numbers of the table by hand, figures, wrong input."""

import math
from pathlib import Path

import numpy as np
import pytest
from support.intensity_files import write_samples
from support.tools import run_tool

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.analysis.records import LogRecord, append_record
from megatron_aia.measurement.curves import read_curves, relative_depth
from megatron_aia.measurement.figures import plot_models, plot_training
from megatron_aia.measurement.table import correlation, read_measured, spread_of

VALUES = np.array([[0.1, 0.3], [0.3, 0.7]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as measuring leaves it, with both tasks."""
    one = write_samples(tmp_path / "one.jsonl", "generation", VALUES).read_text()
    two = write_samples(tmp_path / "two.jsonl", "understanding", 1 - VALUES).read_text()
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "intensity.jsonl").write_text(one + two)
    return tmp_path / "teacher"


def test_deviations_by_hand() -> None:
    spread = spread_of(VALUES)
    root = math.sqrt(2)
    assert spread.by_layer == pytest.approx((0.2 / root + 0.4 / root) / 2)
    assert spread.of_means == pytest.approx(0.3 / root)
    assert spread.of_all == pytest.approx(math.sqrt((0.25**2 + 0.05**2 * 2 + 0.35**2) / 3))
    assert math.isnan(spread_of(VALUES[:1]).by_layer)


def test_the_table(folder: Path, tmp_path: Path) -> None:
    code, out, err = run_tool("compare_intensity", f"mine={folder}", "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    head, generation, understanding, _ = out.splitlines()
    assert head.split("  ")[0] == "model"
    expected = ["mine", "generation", "2", "0.350", "0.212", "0.212", "0.252", "0.200", "-1.000"]
    assert generation.split() == expected
    assert understanding.split()[:4] == ["mine", "understanding", "2", "0.650"]
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "spread_mine.png").stat().st_size > 10_000


def test_markdown_and_a_curve_without_samples(tmp_path: Path) -> None:
    (tmp_path / "theirs.csv").write_text("layer,generation\n0,0.25\n1,0.75\n")
    flags = (tmp_path / "theirs.csv", "--output", tmp_path / "out", "--markdown")
    code, out, _ = run_tool("compare_intensity", *flags)
    assert code == 0
    assert "| theirs | generation | - | 0.500 | - | - | - | - | - |" in out
    assert not list((tmp_path / "out").glob("spread*")), "no samples, no spread"


def test_equal_curves_are_correlated(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("layer,generation,understanding\n0,.1,.2\n1,,.9\n2,.3,.4\n")
    assert correlation(read_measured(str(tmp_path / "a.csv"))) == pytest.approx(1)
    (tmp_path / "b.csv").write_text("layer,generation,understanding\n0,.1,.2\n1,.1,.4\n")
    assert math.isnan(correlation(read_measured(str(tmp_path / "b.csv"))))


def test_mean_and_deviation_of_a_curve(folder: Path) -> None:
    generation, understanding = read_curves(folder)
    assert generation.mean == pytest.approx([0.2, 0.5])
    assert generation.std == pytest.approx([0.2 / math.sqrt(2), 0.4 / math.sqrt(2)])
    assert generation.standard_error == pytest.approx(0.2)
    assert (understanding.task, understanding.samples) == (Task.UNDERSTANDING, 2)


def test_models_of_all_depths_share_the_axis(folder: Path) -> None:
    assert relative_depth(3).tolist() == [0, 0.5, 1]
    assert relative_depth(1).tolist() == [0]
    model = read_measured(str(folder))
    lines = [plot_models([model], by).axes[0].lines[0] for by in (False, True)]
    assert [line.get_xdata().tolist() for line in lines] == [[0, 1], [0, 1]]
    assert lines[0].get_ydata().tolist() == pytest.approx([0.2, 0.5])


def test_flags_change_the_figure(folder: Path, tmp_path: Path) -> None:
    pictures = []
    for flags in ((), ("--overlay",), ("--by-layer",), ("--profile", "paper")):
        output = tmp_path / f"figures{len(pictures)}"
        assert run_tool("compare_intensity", folder, "--output", output, *flags)[0] == 0
        pictures.append((output / "curves.png").read_bytes())
    assert len(set(pictures)) == 4


def record(iteration: int, intensity: dict[Task, np.ndarray]) -> LogRecord:
    return LogRecord(
        **{"iteration": iteration, "train_iters": 4, "consumed_samples": 0},
        **{"seconds_per_iteration": 1, "tokens_per_second": 1, "learning_rate": 1},
        **{"grad_norm": 1, "skipped_iterations": 0, "total_skipped": 0, "loss": 1},
        **{"terms": {}, "losses": {}, "padding_fraction": 0},
        intensity=intensity,
        target={task: np.array([0.4, 0.2]) for task in AIA_TASKS},
    )


def test_layers_while_training(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        append_record(tmp_path, record(step, {Task.GENERATION: np.array([0.1 * step, 0.5])}))
    code, out, _ = run_tool("compare_intensity", "--run", tmp_path, "--output", tmp_path / "out")
    assert code == 0
    assert "training.png" in out
    figure = plot_training([record(2, {Task.GENERATION: np.array([0.1, 0.5])})])
    shares, targets = (axes.collections[0].get_array() for axes in figure.axes[:2])
    assert shares.ravel().tolist() == [0.1, 0.5]
    assert targets.ravel().tolist() == [0.4, 0.2]


def test_wrong_input_is_one_line(folder: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ((), "nothing to compare"),
        ((tmp_path / "none",), "does not exist"),
        ((folder, folder), "are both of teacher; write NAME=PATH"),
        ((f"a/b={folder}",), "write NAME=PATH without /"),
        (("--run", tmp_path / "none"), "give the folder of a run"),
    ):
        code, _, err = run_tool("compare_intensity", *arguments, "--output", tmp_path / "out")
        assert (code, err.count("\n")) == (2, 1)
        assert said in err
