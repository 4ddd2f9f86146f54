"""The loop: reports, checkpoints that go, skipped updates, and refusals before anything hangs."""

import gzip
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_aia.analysis.records import LogRecord, read_records
from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.config import Config
from megatron_aia.config.files import read_yaml
from megatron_aia.runtime.parallel import destroy_parallel
from megatron_aia.training.instruments import PHASES
from megatron_aia.training.trainer import Trainer

LAYERS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def saved(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps under PP 2 that saves each, keeps two, and draws figures."""
    folder = tmp_path_factory.mktemp("saved")
    config = run_config(
        data,
        Layout({"pipeline_model_parallel_size": 2}),
        train_iters=4,
        save=str(folder),
        save_interval=1,
        save_total_limit=2,
    )
    logging = replace(
        config.logging, tensorboard_dir=str(folder / "tensorboard"), aia_figure_interval=2
    )
    spawn(train, 2, replace(config, logging=logging))
    return folder


def test_keeps_the_newest_checkpoints(saved: Path) -> None:
    assert sorted(path.name for path in saved.glob("iter_*")) == ["iter_0000003", "iter_0000004"]


def test_records_hold_every_number(saved: Path) -> None:
    records: list[LogRecord] = read_records(saved)
    assert [record.iteration for record in records] == [1, 2, 3, 4]
    for record in records:
        assert record.loss == pytest.approx(
            record.terms["ntp"] + sum(record.losses["aia"].values())
        )
        assert len(record.losses["ntp"]) == 4
        for curve in record.intensity.values():
            assert curve.shape == (LAYERS,)
            assert ((curve > 0) & (curve < 1)).all()
        assert 0 < record.padding_fraction < 1
        assert list(record.phases) == [*PHASES]
        assert 0 < record.phases["forward_backward"] < record.seconds_per_iteration
        assert sum(record.phases.values()) < 1.5 * record.seconds_per_iteration
        assert record.phases["gradient_reduction"] > 0
        assert record.slowest_rank in (0, 1) and record.rank_spread >= 1
        assert record.memory["resident"] > 2**27
        assert 0 < record.aia_tflops_per_device < record.tflops_per_device
        assert math.isnan(record.mfu)
    # A save is part of the next interval.
    assert records[0].phases["save"] == 0 < records[1].phases["save"]


def test_tensorboard_holds_the_records(saved: Path) -> None:
    events = EventAccumulator(str(saved / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    last = read_records(saved)[-1]
    assert events.Scalars("loss/total")[-1].value == pytest.approx(last.loss, rel=1e-6)
    tags = events.Tags()["scalars"]
    assert f"intensity_generation/layer_{LAYERS - 1:02}" in tags
    assert {f"seconds/{phase}" for phase in PHASES} <= set(tags)
    assert {"memory_gib/resident", "throughput/tflops_per_device", "ranks/spread"} <= set(tags)
    assert "throughput/mfu" not in tags, "the peak of a CPU is not known"
    assert [image.step for image in events.Images("intensity")] == [2, 4]


def test_traces_and_throughput_are_shown(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = run_config(data, Layout(), train_iters=3, save=str(tmp_path))
    traced = changed(
        config,
        "logging",
        log_throughput=True,
        peak_flops=1e10,
        profile=True,
        profile_step_start=2,
        profile_step_end=3,
        profile_ranks=(1,),
    )
    records = spawn(train, 2, traced)
    for record in records:
        assert record.mfu == pytest.approx(record.tflops_per_device * 1e12 / 1e10)
    (trace,) = (tmp_path / "profile").iterdir()
    assert trace.name == "rank_00001_steps_2_3.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = {event["name"] for event in events}
    assert "_RectangleAttention" in names and "_RectangleAttentionBackward" in names
    shown = capfd.readouterr().out
    assert shown.count("TFLOP/s a device") == shown.count("  MFU ") == 3
    assert "stage 0: layers 0-3 and embedding and heads on ranks 0-1" in shown


def test_saved_configuration_can_be_read_again(saved: Path, data: Path) -> None:
    values = read_yaml(str(saved / "iter_0000004" / "config.yaml")).values
    assert values["train_iters"] == 4
    assert tuple(values["data_path"]) == (str(data),)


def test_all_settings_are_in_the_folder_of_the_run(saved: Path) -> None:
    assert (saved / "config.yaml").read_text() == (saved / "iter_0000004/config.yaml").read_text()


def train_with_a_bad_gradient(config: Config) -> tuple[bool, bool, int]:
    """Make one rank's loss infinite in the second of three steps."""
    trainer = Trainer(config)
    forward = trainer.spec.forward

    def poisoned(*args: Any) -> dict[str, torch.Tensor]:
        bad = trainer.progress.iteration == 1 and dist.get_rank() == 1
        return {"nll": forward(*args)["nll"] * (torch.inf if bad else 1.0)}

    trainer.spec = replace(trainer.spec, forward=poisoned)
    snapshots = []
    for _ in range(3):
        trainer._step(trainer.feed.step(trainer.progress.position))
        trainer._log()
        parameters = [p for model in trainer.models for p in model.parameters()]
        snapshots.append(torch.cat([p.detach().flatten() for p in parameters]))
    bad_step_changed_nothing = torch.equal(snapshots[1], snapshots[0])
    next_step_went_on = bool(snapshots[2].isfinite().all()) and not snapshots[2].equal(snapshots[1])
    skipped = trainer.progress.total_skipped
    destroy_parallel()
    return bad_step_changed_nothing, next_step_went_on, skipped


def test_step_with_infinite_gradient_is_skipped_and_counted(data: Path, tmp_path: Path) -> None:
    config = run_config(data, Layout(), train_iters=3, save=str(tmp_path))
    assert spawn(train_with_a_bad_gradient, 2, config) == (True, True, 1)
    records = read_records(tmp_path)
    assert [record.skipped_iterations for record in records] == [0, 1, 0]
    assert records[-1].total_skipped == 1
    assert all(math.isfinite(records[i].loss) for i in (0, 2))


def failure_of(config: Config) -> str:
    try:
        train(config)
    except ValueError as error:
        return str(error)
    return "no error"


def changed(config: Config, group: str, **values: Any) -> Config:
    return replace(config, **{group: replace(getattr(config, group), **values)})


REFUSALS = {
    "another model": (("model", {"ffn_hidden_size": 64}), "--ffn-hidden-size is 48"),
    "another optimizer": (
        ("parallel", {"use_distributed_optimizer": True}),
        "--no-use-distributed-optimizer",
    ),
    "other data": (("data", {"task_ratio": "1:1"}), "--finetune"),
    "no checkpoint": (("checkpoint", {"load": "nowhere"}), "holds no checkpoint"),
    "a profile with a gap": (("aia", {"aia_profile": "gap.yaml"}), "gap.yaml"),
    "no tokeniser": (("data", {"tokenizer_model": "nothing"}), "nothing"),
    "no shards": (("data", {"data_path": ("empty",)}), "empty"),
    "a short row": (("data", {"seq_length": 32}), "--seq-length"),
    "a small codebook": (("model", {"codebook_size": 20}), "20"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_is_one_line_on_every_rank(
    name: str, saved: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "gap.yaml").write_text(PROFILE_WITH_A_GAP)
    (group, values), expected = REFUSALS[name]
    config = run_config(data, Layout(), train_iters=6, load=str(saved))
    config = changed(config, group, **values)
    # rank 0 alone would be enough to see the text; a hang of the other would end in a time-out
    message = spawn(failure_of, 2, config, timeout=60)
    assert expected in message
    assert "\n" not in message


PROFILE_WITH_A_GAP = """
name: gap
depth: 4
source: a test
stages:
  generation:
    - {first: 0, last: 1, target: 0.4, delta: 0.1}
    - {first: 3, last: 3, target: 0.4, delta: 0.1}
  understanding:
    - {first: 0, last: 3, target: 0.4, delta: 0.1}
"""


@pytest.mark.parametrize("world_size", [1, 2])
def test_damaged_checkpoint_is_one_line(
    world_size: int, saved: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(saved / "iter_0000004", copy)
    for file in copy.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for verify, said in ((True, "bytes and was written with"), (False, "cannot be loaded")):
        config = run_config(data, Layout(), train_iters=6, load=str(copy), verify_checkpoint=verify)
        message = spawn(failure_of, world_size, config)
        assert said in message
        assert "\n" not in message


@pytest.mark.parametrize("distributed", [False, True])
def test_replicas_share_the_writing(distributed: bool, data: Path, tmp_path: Path) -> None:
    layout = Layout({"use_distributed_optimizer": distributed})
    spawn(train, 2, run_config(data, layout, train_iters=1, save=str(tmp_path)))
    sizes = [0, 0]
    for file in (tmp_path / "iter_0000001").glob("__*.distcp"):
        sizes[int(file.name.split("_")[2])] += file.stat().st_size
    assert min(sizes) > 0.4 * sum(sizes), sizes


def test_finetune_takes_the_weights_alone(saved: Path, data: Path, tmp_path: Path) -> None:
    config = run_config(
        data, Layout(), train_iters=1, load=str(saved), finetune=True, save=str(tmp_path / "tuned")
    )
    changed_data = changed(config, "data", task_ratio="1:1")
    (record,) = spawn(train, 1, changed_data)
    assert (record.iteration, record.consumed_samples) == (1, 10)
    fresh = run_config(data, Layout(), train_iters=1, save=str(tmp_path / "fresh"))
    (untrained,) = spawn(train, 1, changed(fresh, "data", task_ratio="1:1"))
    assert record.loss < untrained.loss - 0.1


def test_restarted_job_goes_on_from_its_own_folder(saved: Path, data: Path, tmp_path: Path) -> None:
    """One command line for the first start and for every restart of a job."""
    folder = str(tmp_path / "job")

    def start(train_iters: int) -> list[LogRecord]:
        config = run_config(
            data,
            Layout(),
            train_iters,
            save=folder,
            load=folder,
            pretrained_checkpoint=str(saved),
        )
        records: list[LogRecord] = spawn(train, 1, config)
        return records

    first = start(2)
    assert [record.iteration for record in first] == [1, 2]
    fresh = spawn(train, 1, run_config(data, Layout(), 1, save=str(tmp_path / "fresh")))
    assert first[0].loss < fresh[0].loss - 0.1  # the pretrained weights
    assert [record.iteration for record in start(4)] == [1, 2, 3, 4]


def train_until_signal(config: Config) -> int:
    """Send SIGTERM to one rank while it reads for the second step, which then is not begun."""
    trainer = Trainer(config)
    read = trainer.data.step

    def signalled(position: int) -> Any:
        if trainer.progress.iteration == 1 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(position)

    object.__setattr__(trainer.data, "step", signalled)
    trainer.run()
    destroy_parallel()
    return trainer.progress.iteration


def test_signal_to_one_rank_saves_and_stops_all(data: Path, tmp_path: Path) -> None:
    config = run_config(
        data, Layout(), train_iters=50, save=str(tmp_path), exit_signal_handler=True
    )
    assert spawn(train_until_signal, 2, config) == 1
    assert find_checkpoint(tmp_path).name == "iter_0000001"
