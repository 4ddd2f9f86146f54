"""Validation while training: one number in every layout, and nothing that training notices."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.damage import spoil
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_aia.analysis.records import LogRecord
from megatron_aia.analysis.validation import ValidationRecord, read_validations
from megatron_aia.config import Config

TOLERANCE = 1e-5
TP = {"tensor_model_parallel_size": 2}
PP = {"pipeline_model_parallel_size": 2}
OVERLAP = {
    "use_distributed_optimizer": True,
    "overlap_grad_reduce": True,
    "overlap_param_gather": True,
}
LAYOUTS = {
    "unpacked, micro-batch 2": (1, Layout(packing=False, micro_batch_size=2)),
    "TP 2 + SP": (2, Layout({**TP, "sequence_parallel": True})),
    "PP 2": (2, Layout(PP)),
    "PP 2 x VPP 2": (2, Layout({**PP, "num_layers_per_virtual_pipeline_stage": 1})),
    "CP 2": (2, Layout({"context_parallel_size": 2})),
    "DP 2, overlapped": (2, Layout(OVERLAP)),
    "full recompute": (1, Layout({"recompute_granularity": "full"})),
    "TP 2 x DP 2, variable lengths": (4, Layout(TP, variable_lengths=True)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {name: write_dataset(root / name, name) for name in ("emu3", "janus_pro")}


def configure(
    data: Path, layout: Layout, save: Path, validates: bool = True, **more: Any
) -> Config:
    """Return a run of three steps that validates on 20 samples after each."""
    config = run_config(data, layout, train_iters=3, save=str(save))
    training = replace(config.training, eval_interval=1, eval_iters=2, **more)
    folders = (str(data),) if validates else ()
    return replace(config, training=training, data=replace(config.data, valid_data_path=folders))


def validations(config: Config, world_size: int) -> list[ValidationRecord]:
    spawn(train, world_size, config)
    assert config.checkpoint.save is not None
    return read_validations(Path(config.checkpoint.save))


def assert_same(found: ValidationRecord, expected: ValidationRecord) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=TOLERANCE)
    assert found.terms == pytest.approx(expected.terms, rel=TOLERANCE)
    for name, by_task in expected.losses.items():
        assert found.losses[name] == pytest.approx(by_task, rel=TOLERANCE)
    for task, curve in expected.intensity.items():
        np.testing.assert_allclose(found.intensity[task], curve, rtol=TOLERANCE)


@pytest.fixture(scope="module")
def reference(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return {
        family: validations(
            configure(data[family], Layout(family=family), tmp_path_factory.mktemp("run")), 1
        )
        for family in data
    }


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("family", ["emu3", "janus_pro"])
def test_one_number_in_every_layout(
    name: str, family: str, data: dict[str, Path], reference: Any, tmp_path: Path
) -> None:
    world_size, layout = LAYOUTS[name]
    config = configure(data[family], replace(layout, family=family), tmp_path)
    # Step 1 changes nothing: its learning rate is 0.
    found, expected = validations(config, world_size)[0], reference[family][0]
    assert (found.iteration, found.samples) == (1, 20)
    assert_same(found, expected)


def test_the_loss_is_that_of_one_training_step(
    data: dict[str, Path], reference: Any, tmp_path: Path
) -> None:
    """All samples are one batch, also where its two halves hold tasks in other shares."""
    config = configure(data["emu3"], Layout(), tmp_path, validates=False)
    batch = replace(config.data, global_batch_size=20, cfg_drop_prob=0.0)
    step: LogRecord = spawn(train, 1, replace(config, data=batch))[0]
    (expected, *_) = reference["emu3"]
    assert_same(
        ValidationRecord(1, 20, step.loss, step.terms, step.losses, step.intensity), expected
    )


@pytest.mark.parametrize("family", ["emu3", "janus_pro"])
def test_training_does_not_notice(family: str, data: dict[str, Path], tmp_path: Path) -> None:
    """With dropout, the distributed optimizer and weights that are gathered while they are used."""
    runs = []
    for validates in (False, True):
        layout = Layout(OVERLAP, family=family)
        config = configure(data[family], layout, tmp_path / str(validates), validates)
        config = replace(config, model=replace(config.model, hidden_dropout=0.1))
        runs.append(spawn(train, 2, config))
    for without, with_it in zip(*runs, strict=True):
        assert (without.loss, without.grad_norm) == (with_it.loss, with_it.grad_norm)
        assert without.losses == with_it.losses
    assert runs[0][2].loss != runs[0][0].loss


def test_it_learns_and_is_shown(data: dict[str, Path], tmp_path: Path, capfd: Any) -> None:
    config = configure(data["emu3"], Layout(), tmp_path)
    logging = replace(config.logging, tensorboard_dir=str(tmp_path / "tb"))
    records = validations(replace(config, logging=logging), 1)
    assert [record.iteration for record in records] == [1, 2, 3]
    assert records[2].loss < records[0].loss
    assert capfd.readouterr().out.count("validation after iteration") == 3
    events = EventAccumulator(str(tmp_path / "tb"), {"scalars": 0})
    events.Reload()
    shown = [point.value for point in events.Scalars("valid/total")]
    assert shown == pytest.approx([record.loss for record in records], rel=1e-6)
    assert "valid_intensity_generation/layer_00" in events.Tags()["scalars"]


def test_a_corrupt_sample_ends_the_run_on_every_rank(data: dict[str, Path], tmp_path: Path) -> None:
    spoiled = write_dataset(tmp_path / "spoiled", "janus_pro")
    spoil(spoiled, "understanding", ".png", 1, header_only=False)
    config = configure(data["janus_pro"], Layout(family="janus_pro"), tmp_path / "run")
    folders = replace(config.data, valid_data_path=(str(spoiled),))
    with pytest.raises(
        AssertionError, match=r"--valid-data-path: corrupt samples: .*verify_shards"
    ):
        spawn(train, 2, replace(config, data=folders))
