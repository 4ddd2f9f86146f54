"""Training does what it is for: losses fall, and intensities move to the profile."""

from dataclasses import replace

import numpy as np
import pytest
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.analysis.records import LogRecord

STEPS = 40
LAYOUT = Layout({"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2})


def distance(records: list[LogRecord], task: Task) -> float:
    """Distance of the mean intensity of a few steps (of few samples each) from the target."""
    intensity = np.mean([record.intensity[task] for record in records], axis=0)
    return float(np.abs(intensity - records[0].target[task]).mean())


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[float, list[LogRecord]]:
    """Records of a run with lambda 40 and of one that only measures."""
    data = write_dataset(tmp_path_factory.mktemp("data"))
    runs = {}
    for weight in (40.0, 0.0):
        folder = tmp_path_factory.mktemp("run")
        config = run_config(data, LAYOUT, STEPS, save=str(folder))
        runs[weight] = spawn(
            train,
            4,
            replace(
                config,
                model=replace(config.model, init_method_std=0.02),
                aia=replace(
                    config.aia, aia_lambda_generation=weight, aia_lambda_understanding=weight
                ),
                training=replace(config.training, lr=3e-3, min_lr=3e-3),
            ),
        )
    return runs


@pytest.mark.parametrize("task", AIA_TASKS)
def test_intensities_move_to_the_profile(task: Task, records: dict[float, list[LogRecord]]) -> None:
    aligned, measured = records[40.0], records[0.0]
    assert distance(aligned[-10:], task) < distance(aligned[:1], task) / 2
    assert distance(aligned[-10:], task) < distance(measured[-10:], task) / 2


def test_next_token_losses_fall_with_and_without(records: dict[float, list[LogRecord]]) -> None:
    for run in records.values():
        assert run[0].terms["ntp"] == pytest.approx(np.log(546), rel=0.03)  # uniform over the ids
        for task, loss in run[-1].losses["ntp"].items():
            assert loss < run[0].losses["ntp"][task] - 1.0, task


def test_first_step_is_the_same_whatever_lambda(records: dict[float, list[LogRecord]]) -> None:
    assert records[40.0][0].terms["ntp"] == records[0.0][0].terms["ntp"]
    for task in AIA_TASKS:
        np.testing.assert_array_equal(
            records[40.0][0].intensity[task], records[0.0][0].intensity[task]
        )
