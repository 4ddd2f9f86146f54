"""A whole step of some layers at the width of 8B models, AIA on against off; waits of the host."""

import statistics
import warnings
from argparse import Namespace
from typing import Any

import torch
from attention_sides.measure import peak_bytes, seconds
from step_cost import Side, one_process

from megatron_aia.runtime.device import device_name, has_cuda
from megatron_aia.runtime.peak_flops import peak_flops

GOAL = 1.01
SIZES: dict[str, Any] = (
    {"layers": 4, "hidden_size": 4096, "length": 8192}
    if has_cuda()
    else {"layers": 2, "hidden_size": 256, "length": 1024}
)
CASES = {"Emu3-8B": ("generation", 4), "Janus-Pro-7B, packed": ("packed", 1)}


def run() -> dict[str, Any]:
    torch.set_num_threads(1)
    rounds = 12 if has_cuda() else 2
    lines: list[str] = []
    tables: dict[str, Any] = {}
    ratios, parallel = [], None
    for case, (shape, group) in CASES.items():
        shape = shape if has_cuda() or shape != "packed" else "generation"
        options = Namespace(
            **SIZES, shape=shape, heads_a_group=min(group, 2 if not has_cuda() else 4)
        )
        parallel = parallel or one_process(options)
        side = Side(options, "bf16", parallel)
        steps = side.steps(64)
        for step in steps.values():
            step()
        memory = {name: peak_bytes(step) for name, step in steps.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                times[name].append(seconds(step))
        off = times["AIA off"]
        peak = peak_flops(device_name())
        tables[case] = {}
        for name in steps:
            middle = statistics.median(times[name])
            ratio = statistics.median(a / b for a, b in zip(times[name], off, strict=True))
            mfu = side.operations / middle / peak if peak else None
            more = memory[name] / memory["AIA off"]
            tables[case][name] = {"seconds": middle, "ratio": ratio, "mfu": mfu, "memory": more}
            shown = f", MFU {mfu:.1%}" if mfu else ""
            lines.append(
                f"{case}: {name}: {1e3 * middle:.1f} ms, x {ratio:.3f}{shown}, memory x {more:.3f}"
            )
            if name.startswith("AIA, flash"):
                ratios.append(ratio)
        tables[case]["waits"] = waits = _waits(steps)
        if waits is not None:
            lines.append(f"{case}: the host waits {waits} times more in a step with AIA on")
        del side
    lines.append(f"goal of x {GOAL}: {'met' if max(ratios) <= GOAL else 'not met'}")
    return {"ok": "measured", "lines": lines, "tables": tables}


def _waits(steps: dict[str, Any]) -> int | None:
    """Return how many more synchronising calls a step with AIA makes."""
    if not has_cuda():
        return None
    counts = {}
    torch.cuda.set_sync_debug_mode("warn")
    for name in ("AIA off", next(name for name in steps if name.startswith("AIA, flash"))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            steps[name]()
        counts[name] = sum("synchronizing" in str(warning.message) for warning in caught)
    torch.cuda.set_sync_debug_mode("default")
    off, on = counts.values()
    return on - off
