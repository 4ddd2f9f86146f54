"""What a run shows of itself: timers, peaks, flags, the second console line."""

import math
import time
from typing import Any

import pytest
from test_console import make_record

from megatron_aia.analysis.records import LogRecord
from megatron_aia.config import fit_layout, validate
from megatron_aia.config.files import with_values
from megatron_aia.models import preset_table
from megatron_aia.runtime import flight_recorder
from megatron_aia.runtime.peak_flops import PEAK_FLOPS, peak_flops
from megatron_aia.runtime.timers import StepTimers
from megatron_aia.training.console import format_instruments


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H800", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA GeForce RTX 4090", None),
        ("Tesla T4", None),
        ("CPU", None),
    ],
)
def test_the_peak_is_that_of_the_device(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak


def test_no_peak_is_of_another_order() -> None:
    assert all(1e14 < peak < 1e16 for peak in PEAK_FLOPS.values())


def test_an_inner_span_takes_its_time_from_the_outer() -> None:
    timers = StepTimers()
    for _ in range(2):
        with timers.span("outer"):
            time.sleep(0.03)
            with timers.span("inner", on_host=True):
                time.sleep(0.05)
    found = timers.take()
    assert 0.1 <= found["inner"] < 0.2 and 0.06 <= found["outer"] < 0.1, found
    assert timers.take() == {}


def test_a_span_that_raises_is_still_counted() -> None:
    timers = StepTimers()
    with pytest.raises(ValueError), timers.span("data"):
        raise ValueError
    with timers.span("data"):
        pass
    assert list(timers.take()) == ["data"]


INSTRUMENTS: dict[str, Any] = {
    "phases": {
        "data": 0.0041,
        "forward_backward": 0.328,
        "gradient_reduction": 0.041,
        "optimizer": 0.02,
        "save": 0.0,
    },
    "slowest_rank": 3,
    "rank_spread": 1.042,
    "memory": {"allocated": 31.5 * 2**30, "reserved": 40.0 * 2**30, "total": 79.6 * 2**30},
    "tflops_per_device": 412.34,
    "aia_tflops_per_device": 1.26,
    "mfu": 0.41694,
}


def test_the_second_line_names_every_instrument() -> None:
    assert format_instruments(make_record(**INSTRUMENTS)) == (
        "    412.3 TFLOP/s a device (AIA 1.3 more)  MFU 41.7%"
        " | GiB allocated 31.50  reserved 40.00  total 79.60"
        " | data 1%  fwd+bwd 80%  reduce 10%  optimizer 5%  save 0% | slowest rank 3 (x 1.04)"
    )
    bare = {**INSTRUMENTS, "mfu": math.nan, "aia_tflops_per_device": 0.0}
    line = format_instruments(make_record(**bare))
    assert "MFU" not in line and "AIA" not in line


def test_records_of_before_there_were_instruments_are_read() -> None:
    record = make_record(**INSTRUMENTS)
    assert LogRecord.from_json(record.to_json()).to_json() == record.to_json()
    earlier = make_record().to_json()
    start = earlier.index(', "phases"')
    read = LogRecord.from_json(earlier[:start] + "}")
    assert (read.phases, read.memory, read.slowest_rank) == ({}, {}, -1)
    assert math.isnan(read.mfu)


def check(world_size: int = 4, has_gpu: bool = False, **values: Any) -> list[str]:
    config = with_values(preset_table()["emu3_demo"].build(), values)
    return validate(fit_layout(config, world_size), world_size, has_gpu)


PROFILE = {"profile": True, "save": "run"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"profile": True}, "--profile has no folder to write to; add --tensorboard-dir or"),
        ({**PROFILE, "profile_step_end": 10}, "--profile-step-end 10 is not after .* use 11"),
        ({**PROFILE, "profile_ranks": (0, 4)}, "--profile-ranks 4 .* 4 processes; use 3 or less"),
        ({**PROFILE, "profile_ranks": (-1,)}, "--profile-ranks -1 is out of range; use 0 or"),
        ({"record_memory_history": True, "save": "run"}, "records a GPU's memory and there is no"),
        ({"peak_flops": 0.0}, "--peak-flops 0.0 is out of range"),
    ],
)
def test_what_cannot_be_traced_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(**values)


def test_a_trace_after_the_end_is_noted() -> None:
    assert check(**PROFILE, train_iters=100) == []
    (note,) = check(**PROFILE, train_iters=9, lr_warmup_iters=2)
    assert note == "--profile has no effect: step 10 is after the last, 9"
    assert check(has_gpu=True, record_memory_history=True, tensorboard_dir="tb") == []


def test_flight_records_go_to_the_folder_of_the_run(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_FR_DUMP_TEMP_FILE")
    for name in names:
        monkeypatch.setenv(name, "set to be removed")
        monkeypatch.delenv(name)
    flight_recorder.keep_flight_records(tmp_path)
    assert not any(name in flight_recorder.os.environ for name in names), "a CPU has no NCCL"
    monkeypatch.setattr(flight_recorder, "has_cuda", lambda: True)
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "7")
    flight_recorder.keep_flight_records(tmp_path)
    found = [flight_recorder.os.environ[name] for name in names]
    assert found == ["7", "1", str(tmp_path / "nccl_trace" / "rank_")]
    assert (tmp_path / "nccl_trace").is_dir()
    for name in names[1:]:
        monkeypatch.delenv(name)
