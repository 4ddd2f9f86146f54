"""The fused kernel, interpreted, gives the numbers of the other methods in layouts of its own."""

import os
from pathlib import Path

import pytest
from support.layouts import Layout, StepResult, relative_difference, run_layout, tiny_config
from support.spawn import spawn
from support.tiny_data import write_shards

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU: nothing is interpreted"
    ),
]

TOLERANCE = 1e-5
SP = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
LAYOUTS = {
    "one process, full recompute": (1, Layout({"recompute_granularity": "full"}, method="fused")),
    "TP 2 + SP": (2, Layout(SP, method="fused")),
    "PP 2": (2, Layout({"pipeline_model_parallel_size": 2}, method="fused")),
    "CP 2": (2, Layout({"context_parallel_size": 2}, method="fused")),
}


def first_step(shards: Path, layout: Layout) -> StepResult:
    return run_layout(tiny_config(shards, layout), num_steps=1, check_replicas=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def reference(shards: Path) -> StepResult:
    result: StepResult = spawn(first_step, 1, shards, Layout(method="eager"))
    return result


@pytest.mark.parametrize("name", LAYOUTS)
def test_fused_gives_the_same_numbers(name: str, shards: Path, reference: StepResult) -> None:
    world_size, layout = LAYOUTS[name]
    result = spawn(first_step, world_size, shards, layout, timeout=900)
    assert relative_difference(result, reference) < TOLERANCE
