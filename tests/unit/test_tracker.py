import numpy as np
import pytest
import torch

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.loss import AIALoss
from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import AIA_TASKS, AIATerm, Segment, Task
from megatron_aia.aia.tracker import IntensityTracker

GENERATION, UNDERSTANDING = AIA_TASKS
NUM_LAYERS = 4


def objective() -> AIALoss:
    layers = {task: np.full(NUM_LAYERS, 0.25) for task in AIA_TASKS}
    return AIALoss(
        LayerTargets(layers, layers), dict.fromkeys(AIA_TASKS, 8.0), NUM_LAYERS, num_active=2
    )


def measured(
    intensity: dict[int, list[float]],
    tasks: tuple[Task, ...] = (GENERATION, UNDERSTANDING),
    step: AIALoss | None = None,
) -> AIAContext:
    """A micro-batch of one-row, one-head terms, run through the layers of ``intensity``."""
    one = np.array([0])
    segments = tuple(
        Segment(0, i, i + 1, (AIATerm(task, one, one),)) for i, task in enumerate(tasks)
    )
    aia = AIAContext(segments, step, num_heads=1)
    for layer, values in intensity.items():
        aia.attach(torch.zeros(1), torch.tensor(values, dtype=torch.float64), layer)
    return aia


def test_means_over_micro_batches() -> None:
    tracker = IntensityTracker(NUM_LAYERS)
    step = objective()
    tracker.add(measured({0: [0.5, 0.125], 1: [0.25, 0.0]}, step=step))
    tracker.add(measured({0: [0.25], 1: [0.75]}, (GENERATION,), step=step))
    report = tracker.report()
    np.testing.assert_equal(report.intensity[GENERATION], [0.375, 0.5, np.nan, np.nan])
    np.testing.assert_equal(report.intensity[UNDERSTANDING], [0.125, 0.0, np.nan, np.nan])
    assert report.count == {GENERATION: 2, UNDERSTANDING: 1}
    # Weight 8 / (4 * 2) = 1; distances 0.25, 0 | 0, 0.5 and -0.125, -0.25, threshold 0.25.
    assert report.loss[GENERATION] == pytest.approx(0.25**2 / 2 + 0.25 * 0.5 - 0.25**2 / 2)
    assert report.loss[UNDERSTANDING] == pytest.approx(0.125**2 / 2 + 0.25**2 / 2)


def test_deviations_over_samples() -> None:
    """Against numpy, over micro-batches and steps; a single sample has none."""
    tracker = IntensityTracker(NUM_LAYERS)
    values = np.random.default_rng(0).random((3, 2))
    for row in values:
        tracker.add(measured({0: row.tolist()}, (GENERATION, GENERATION), step=objective()))
    tracker.add(measured({1: [0.5, 0.5]}))
    report = tracker.report()
    expected = values.std(ddof=1)
    assert report.std[GENERATION][0] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(report.std[GENERATION][1:]).all()
    assert np.isnan(report.std[UNDERSTANDING]).all()


def test_equal_samples_do_not_deviate() -> None:
    tracker = IntensityTracker(NUM_LAYERS)
    for _ in range(3):
        tracker.add(measured({0: [0.1, 0.7]}))
    assert tracker.report().std[GENERATION][0] == pytest.approx(0, abs=1e-8)


def test_loss_is_a_mean_over_steps() -> None:
    tracker = IntensityTracker(NUM_LAYERS)
    for _ in range(3):
        step = objective()
        for _ in range(2):
            tracker.add(measured({0: [0.5, 0.25]}, step=step))
    report = tracker.report()
    assert report.loss[GENERATION] == pytest.approx(2 * 0.25**2 / 2)
    assert report.count[GENERATION] == 6


def test_ranks_and_stages_add_up_to_one_process() -> None:
    first, second = {0: [0.5, 0.125], 1: [0.25, 0.5]}, {2: [0.75, 0.25], 3: [0.0, 1.0]}
    one = IntensityTracker(NUM_LAYERS)
    step = objective()
    for _ in range(2):
        one.add(measured(first | second, step=step))
    ranks = []
    for _data_rank in range(2):
        for layers in (first, second):
            ranks.append(IntensityTracker(NUM_LAYERS))
            ranks[-1].add(measured(layers, step=step))
    vector = torch.stack([tracker.totals() for tracker in ranks]).sum(0)
    assert vector.dtype == torch.float64
    ranks[0].load_totals(vector)
    got, expected = ranks[0].report(), one.report()
    for task in AIA_TASKS:
        np.testing.assert_allclose(got.intensity[task], expected.intensity[task])
        np.testing.assert_allclose(got.std[task], expected.std[task], atol=1e-12)
    assert (got.loss, got.count) == (pytest.approx(expected.loss), expected.count)


def test_a_chunk_of_layers_at_a_time() -> None:
    tracker = IntensityTracker(NUM_LAYERS)
    tracker.add(measured({0: [0.5, 0.5]}))
    tracker.add(measured({3: [0.5, 0.5]}))
    assert tracker.report().count == {GENERATION: 1, UNDERSTANDING: 1}


def test_measuring_has_no_loss() -> None:
    tracker = IntensityTracker(NUM_LAYERS)
    tracker.add(measured({0: [0.5, 0.5]}))
    assert tracker.report().loss == {GENERATION: 0.0, UNDERSTANDING: 0.0}


def test_empty_and_cleared_trackers_report_nothing() -> None:
    tracker = IntensityTracker(NUM_LAYERS)
    tracker.add(measured({0: [0.5, 0.5]}, step=objective()))
    tracker.clear()
    tracker.add(AIAContext((Segment(0, 0, 3),), objective(), num_heads=1))
    report = tracker.report()
    assert report.count == {GENERATION: 0, UNDERSTANDING: 0}
    assert report.loss == {GENERATION: 0.0, UNDERSTANDING: 0.0}
    assert np.isnan(report.intensity[GENERATION]).all()
