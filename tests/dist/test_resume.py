"""A run that stops and goes on, under the same or another layout, is the run that never stopped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.layouts import Layout
from support.runs import run_config, train, train_all, write_dataset
from support.spawn import spawn

from megatron_aia.analysis.records import LogRecord
from megatron_aia.checkpoint.run_state import read_state
from megatron_aia.runtime.versions import COMMON_FILE, megatron_core_version, needs_common_file

pytestmark = pytest.mark.versions

STOP, END = 3, 6
TOLERANCE = 1e-5

CP = {"context_parallel_size": 2}
FOUR = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
RESUMED = {
    "TP 2 x PP 2": (4, Layout(FOUR)),
    "one process": (1, Layout()),
    "one process, unpacked, micro-batch 2": (1, Layout(packing=False, micro_batch_size=2)),
    "TP 2 + SP": (2, Layout({"tensor_model_parallel_size": 2, "sequence_parallel": True})),
    "PP 2 x VPP 2": (
        2,
        Layout({"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 1}),
    ),
    "DP 2": (2, Layout()),
    "CP 2": (2, Layout(CP)),
    "one process, after CP 2": (1, Layout()),
    "CP 2, after CP 2": (2, Layout(CP)),
}


@pytest.fixture(scope="module", params=[False, True], ids=["replicated", "distributed"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The uninterrupted run, and by name the records of runs that resume from its step 3."""
    zero = {"use_distributed_optimizer": request.param}
    data = write_dataset(tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("runs")
    whole = run_config(
        data, Layout({**FOUR, **zero}), END, save=str(folder / "whole"), save_interval=STOP
    )
    uninterrupted = spawn(train, 4, whole)
    shared_rows = run_config(
        data, Layout({**CP, **zero}), STOP, save=str(folder / "after CP 2"), save_interval=STOP
    )
    spawn(train, 2, shared_rows)
    resumed: dict[str, list[LogRecord]] = {}
    for world_size in (1, 2, 4):
        configs = {
            name: run_config(
                data,
                Layout({**layout.parallel, **zero}, layout.micro_batch_size, layout.packing),
                END,
                load=str(folder / _source(name) / f"iter_{STOP:07d}"),
                save=str(folder / name),
            )
            for name, (size, layout) in RESUMED.items()
            if size == world_size
        }
        resumed.update(spawn(train_all, world_size, configs))
    return folder, uninterrupted, resumed


def _source(name: str) -> str:
    return "after CP 2" if name.endswith("after CP 2") else "whole"


@pytest.mark.parametrize("name", RESUMED)
def test_goes_on_like_the_uninterrupted_run(name: str, runs: Any) -> None:
    _, uninterrupted, resumed = runs
    expected = uninterrupted[STOP:]
    assert [record.iteration for record in resumed[name]] == [4, 5, 6]
    for ours, theirs in zip(resumed[name], expected, strict=True):
        assert ours.consumed_samples == theirs.consumed_samples
        assert ours.learning_rate == pytest.approx(theirs.learning_rate, rel=1e-12)
        assert ours.loss == pytest.approx(theirs.loss, rel=TOLERANCE)
        assert ours.losses["ntp"] == pytest.approx(theirs.losses["ntp"], rel=TOLERANCE)
        assert ours.losses["aia"] == pytest.approx(theirs.losses["aia"], rel=TOLERANCE)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=TOLERANCE)


def test_same_layout_goes_on_bit_for_bit(runs: Any) -> None:
    _, uninterrupted, resumed = runs
    for ours, theirs in zip(resumed["TP 2 x PP 2"], uninterrupted[STOP:], strict=True):
        assert (ours.loss, ours.grad_norm) == (theirs.loss, theirs.grad_norm)


def test_dropout_goes_on_where_ranks_share_rows(tmp_path: Path) -> None:
    """Each rank of a row has random states of its own, in the checkpoint too."""
    data = write_dataset(tmp_path / "data")
    whole, resumed = (
        run_config(data, Layout(CP), STOP, save=str(tmp_path / name), save_interval=1, **more)
        for name, more in (
            ("whole", {}),
            ("resumed", {"load": str(tmp_path / "whole" / "iter_0000001")}),
        )
    )
    expected, found = (
        spawn(train, 2, replace(config, model=replace(config.model, hidden_dropout=0.2)))
        for config in (whole, resumed)
    )
    assert [(r.loss, r.grad_norm) for r in found] == [(r.loss, r.grad_norm) for r in expected[1:]]


def test_folder_is_as_documented(runs: Any) -> None:
    folder: Path = runs[0] / "whole"
    assert (folder / "latest_checkpointed_iteration.txt").read_text() == f"{END}\n"
    for iteration in (STOP, END):
        names = {path.name for path in (folder / f"iter_{iteration:07d}").iterdir()}
        assert {"run.json", "config.yaml", "metadata.json", ".metadata"} <= names
        assert (COMMON_FILE in names) == needs_common_file(megatron_core_version())
        state = read_state(folder / f"iter_{iteration:07d}")
        assert state.megatron_core == megatron_core_version()
    assert not list(folder.glob(".*"))
