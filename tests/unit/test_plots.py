import sys

import numpy as np
import pytest
from support.records import placeholder_record

from megatron_aia.aia.roles import Task
from megatron_aia.analysis.plots import plot_intensity, plot_losses, plot_reconstruction
from megatron_aia.analysis.records import LogRecord

G, U = Task.GENERATION, Task.UNDERSTANDING


def make_record(iteration: int, ntp: dict, aia: dict) -> LogRecord:
    return placeholder_record(
        iteration,
        losses={"ntp": ntp, "aia": aia},
    )


def curves(axes) -> dict:
    return {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_losses_by_task():
    records = [
        make_record(1, {G: 6.0, U: 5.0}, {G: 0.5}),
        make_record(10, {G: 4.0}, {G: 0.25}),
    ]
    ntp, aia = plot_losses(records).axes
    assert set(curves(ntp)) == {"generation", "understanding"}
    np.testing.assert_array_equal(curves(ntp)["generation"], [[1, 6], [10, 4]])
    np.testing.assert_array_equal(curves(ntp)["understanding"], [[1, 5], [10, np.nan]])
    np.testing.assert_array_equal(curves(aia)["generation"], [[1, 0.5], [10, 0.25]])
    assert "nats per token" in ntp.get_ylabel() and aia.get_xlabel() == "iteration"
    assert aia.get_ylim()[0] == 0


def test_losses_without_aia_have_one_panel():
    (axes,) = plot_losses([make_record(1, {G: 6.0}, {})]).axes
    assert axes.get_xlabel() == "iteration"


def test_intensity_before_after_and_target():
    before = {G: np.array([0.5, 0.25]), U: np.array([0.1, np.nan])}
    after = {G: np.array([0.4, 0.2])}
    target = {G: np.array([0.4, 0.3]), U: np.array([0.1, 0.2])}
    figure = plot_intensity(before, after, target, "title")
    generation, understanding = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["generation", "understanding"]
    np.testing.assert_array_equal(curves(generation)["before"], [[0, 0.5], [1, 0.25]])
    np.testing.assert_array_equal(curves(generation)["after"], [[0, 0.4], [1, 0.2]])
    assert set(curves(understanding)) == {"before"}
    (steps,) = generation.patches
    np.testing.assert_array_equal(steps.get_data().values, [0.4, 0.3])
    np.testing.assert_array_equal(steps.get_data().edges, [-0.5, 0.5, 1.5])
    assert generation.get_ylim()[0] == 0
    assert figure.get_suptitle() == "title"


def test_the_spread_of_samples_is_a_band():
    after, spread = {G: np.array([0.4, 0.2])}, {G: np.array([0.1, np.nan])}
    (band,) = plot_intensity({}, after, {}, "title", spread).axes[0].collections
    corners = band.get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((0.3, 0.5))
    assert not plot_intensity({}, after, {}, "title").axes[0].collections


def test_reconstruction_shows_both_pictures():
    original = np.zeros((4, 6, 3), dtype=np.uint8)
    decoded = np.full((4, 6, 3), 200, dtype=np.uint8)
    figure = plot_reconstruction(original, decoded, "8 codes")
    left, right = (axes.get_images()[0].get_array() for axes in figure.axes)
    np.testing.assert_array_equal(left, original)
    np.testing.assert_array_equal(right, decoded)
    assert figure.axes[0].get_xlabel() == "6 x 4 pixels"


def draw_intensity(layers: int):
    curve = {G: np.full(layers, 0.5), U: np.full(layers, 0.1)}
    return plot_intensity(curve, curve, curve, "a title of the usual length")


FIGURES = {
    "losses": lambda: plot_losses([make_record(1, {G: 6.0, U: 5.0}, {G: 0.5})]),
    "shallow": lambda: draw_intensity(layers=2),
    "deep": lambda: draw_intensity(layers=32),
    "wide": lambda: plot_reconstruction(*np.zeros((2, 10, 30, 3), np.uint8), "8 codes"),
    "tall": lambda: plot_reconstruction(*np.zeros((2, 30, 10, 3), np.uint8), "8 codes"),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_no_label_leaves_the_figure(draw):
    figure = draw()
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= 0 and drawn.y0 >= 0
    assert drawn.x1 <= figure.get_figwidth() and drawn.y1 <= figure.get_figheight()


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"megatron_aia\[demo\]"):
        plot_losses([make_record(1, {G: 6.0}, {})])
