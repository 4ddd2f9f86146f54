import dataclasses
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_aia.aia.roles import Task
from megatron_aia.analysis.records import LogRecord
from megatron_aia.training.tensorboard import TensorBoardLog

RECORD = LogRecord(
    iteration=10,
    train_iters=40,
    consumed_samples=80,
    seconds_per_iteration=0.5,
    tokens_per_second=2000.0,
    learning_rate=1e-3,
    grad_norm=math.nan,
    skipped_iterations=1,
    total_skipped=1,
    loss=3.0,
    terms={"ntp": 2.5, "aia": 0.5},
    losses={
        "ntp": {Task.GENERATION: 2.0, Task.UNDERSTANDING: math.nan},
        "aia": {Task.GENERATION: 0.5},
    },
    intensity={Task.GENERATION: np.array([0.25, math.nan])},
    target={Task.GENERATION: np.array([0.5, 0.125])},
    padding_fraction=0.25,
)


def read(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def points(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_scalars_that_exist_are_written_and_no_others(tmp_path):
    log = TensorBoardLog(tmp_path)
    log.write(RECORD)
    log.close()
    events = read(tmp_path)
    expected = {
        "loss/total": 3.0,
        "loss/ntp": 2.5,
        "loss/ntp_generation": 2.0,
        "loss/aia": 0.5,
        "loss/aia_generation": 0.5,
        "train/learning_rate": 1e-3,
        "train/skipped_iterations": 1,
        "train/total_skipped": 1,
        "train/consumed_samples": 80,
        "train/corrupt_samples": 0,
        "throughput/tokens_per_second": 2000.0,
        "throughput/seconds_per_iteration": 0.5,
        "throughput/padding_fraction": 0.25,
        "intensity_distance/generation": 0.25,  # of the layer that was measured
        "intensity_generation/layer_00": 0.25,
        "intensity_generation_target/layer_00": 0.5,
        "intensity_generation_target/layer_01": 0.125,
    }
    assert set(events.Tags()["scalars"]) == set(expected)
    for tag, value in expected.items():
        assert points(events, tag) == [(10, pytest.approx(value))]


def test_layout_lays_each_intensity_over_its_target(tmp_path):
    from tensorboard.plugins.custom_scalar import layout_pb2

    log = TensorBoardLog(tmp_path)
    log.write(RECORD)
    log.write(dataclasses.replace(RECORD, iteration=20))
    log.close()
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {
        (category.title, chart.title): list(chart.multiline.tag)
        for category in layout.category
        for chart in category.chart
    }
    assert charts["intensity and target, generation", "layer 01"] == [
        "intensity_generation/layer_01$",
        "intensity_generation_target/layer_01$",
    ]
    assert charts["loss", "AIA by task"] == [
        "loss/aia_generation$",
        "loss/aia_understanding$",
    ]


def test_resume_replaces_points_after_its_start(tmp_path):
    first = TensorBoardLog(tmp_path)
    for iteration in (10, 20, 30):
        first.write(dataclasses.replace(RECORD, iteration=iteration, loss=1.0))
    first.close()
    second = TensorBoardLog(tmp_path, start_iteration=20)
    second.write(dataclasses.replace(RECORD, iteration=30, loss=2.0))
    second.close()
    assert points(read(tmp_path), "loss/total") == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_figure_and_configuration(tmp_path):
    log = TensorBoardLog(tmp_path)
    log.figure("intensity", Figure(figsize=(2, 1), dpi=50), 10)
    log.text("aia:\n  enabled: true\n")
    log.close()
    events = read(tmp_path)
    (image,) = events.Images("intensity")
    assert (image.step, image.width, image.height) == (10, 100, 50)
    (text,) = events.Tensors("config/text_summary")
    assert text.tensor_proto.string_val[0] == b"    aia:\n      enabled: true\n"
