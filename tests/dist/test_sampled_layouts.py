"""The sample has the same queries in every layout, so its estimates are one number there too."""

from pathlib import Path

import pytest
from support.layouts import Layout, StepResult, relative_difference, run_layouts
from support.spawn import spawn
from support.tiny_data import write_shards

TOLERANCE = 1e-5
ROWS = 3

SAMPLED = {"method": "sampled", "sampled_queries": ROWS}
TP = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
PP = {"pipeline_model_parallel_size": 2}
FULL = {"recompute_granularity": "full"}
SELECTIVE = {"recompute_granularity": "selective"}

ONE_PROCESS = {
    "exact": Layout(packing=False),
    "all rows": Layout(method="sampled", sampled_queries=10_000),
    "sampled": Layout(packing=False, **SAMPLED),  # type: ignore[arg-type]
    "packed, selective recompute": Layout(SELECTIVE, 2, **SAMPLED),  # type: ignore[arg-type]
}
TWO_PROCESSES = {
    "TP 2 + SP + full recompute": Layout({**TP, **FULL}, **SAMPLED),  # type: ignore[arg-type]
    "PP 2": Layout(PP, **SAMPLED),  # type: ignore[arg-type]
    "CP 2": Layout({"context_parallel_size": 2}, **SAMPLED),  # type: ignore[arg-type]
    "DP 2": Layout(**SAMPLED),  # type: ignore[arg-type]
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StepResult]:
    shards: Path = write_shards(tmp_path_factory.mktemp("shards"))
    one: dict[str, StepResult] = spawn(run_layouts, 1, shards, ONE_PROCESS)
    return {**one, **spawn(run_layouts, 2, shards, TWO_PROCESSES)}


@pytest.mark.parametrize("name", ["packed, selective recompute", *TWO_PROCESSES])
def test_the_same_rows_in_every_layout(name: str, results: dict[str, StepResult]) -> None:
    assert relative_difference(results[name], results["sampled"]) < TOLERANCE


def test_all_rows_are_exact(results: dict[str, StepResult]) -> None:
    assert relative_difference(results["all rows"], results["exact"]) < TOLERANCE


def test_few_rows_are_an_estimate(results: dict[str, StepResult]) -> None:
    assert relative_difference(results["sampled"], results["exact"]) > 1e-3
