"""One attention layer of 8B models on a rank of TP 4: AIA on against AIA off, on each kernel."""

from argparse import Namespace
from dataclasses import asdict
from typing import Any

import torch
from attention_cost import measure
from attention_sides.layer import Layer, methods

from megatron_aia.runtime.device import has_cuda, has_cudnn_attention

GOAL = 1.05
LENGTH = 8192 if has_cuda() else 2048
DTYPE = "bf16" if has_cuda() else "fp32"
CASES = {
    "Emu3-8B, TP 4, one image": ("generation", 8, 2),
    "Emu3-8B, TP 4, one question": ("understanding", 8, 2),
    "Janus-Pro-7B, TP 4, packed": ("packed", 8, 8),
}


def run() -> dict[str, Any]:
    rounds = 15 if has_cuda() else 2
    tables: dict[str, Any] = {}
    lines = []
    for case, (shape, heads, groups) in CASES.items():
        heads, groups = (heads, groups) if has_cuda() else (2, 1)
        options = Namespace(
            heads=heads,
            groups=groups,
            head_size=128,
            dtype=DTYPE,
            sampled_queries=64,
            rounds=rounds,
        )
        results = measure(shape, LENGTH, options)
        tables[case] = {name: asdict(result) for name, result in results.items()}
        for name, result in results.items():
            milliseconds, ratio = 1e3 * result.seconds, result.time_ratio
            lines.append(f"{case}: {name}: {milliseconds:.2f} ms, x {ratio:.3f}")
        tables[case]["kernels"] = _kernels(shape, options)
    plans = _plan_costs()
    lines += [f"cuDNN, {text}" for text in plans]
    aia = [
        result["time_ratio"]
        for table in tables.values()
        for name, result in table.items()
        if name.startswith("AIA, flash")
    ]
    lines.append(f"goal of x {GOAL}: {'met' if max(aia) <= GOAL else 'not met'}")
    return {"ok": "measured", "lines": lines, "tables": tables}


def _kernels(shape: str, options: Namespace) -> list[tuple[str, int, float]]:
    """Return the kernels of three steps that take longest: name, calls, microseconds."""
    if not has_cuda():
        return []
    layer = Layer(shape, LENGTH, options)
    chosen = methods(shape, LENGTH, options.sampled_queries)
    name = next(name for name in chosen if name.startswith("AIA, flash"))
    with torch.profiler.profile() as profiler:
        for _ in range(3):
            layer.step(chosen[name][0])
        torch.cuda.synchronize()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    return [(e.key[:120], e.count, e.self_device_time_total) for e in events[:25]]


def _plan_costs() -> list[str]:
    """Return what a new length costs cuDNN, and what an old one."""
    if not has_cudnn_attention():
        return []
    from attention_sides.measure import seconds

    from megatron_aia.aia.roles import Segment
    from megatron_aia.attention.layout import AttentionLayout
    from megatron_aia.attention.rectangle import attend

    def call(length: int) -> None:
        layout = AttentionLayout([Segment(0, 0, length)], length, 1)
        make = [
            torch.randn(length, 1, h, 128, device="cuda", dtype=torch.bfloat16) for h in (8, 2, 2)
        ]
        leaves = [x.permute(1, 2, 0, 3).detach().requires_grad_() for x in make]
        output, _ = attend(*leaves, layout, 128**-0.5, "cudnn")
        output.sum().backward()

    call(8000)
    times = [
        (seconds(lambda n=n: call(n)), seconds(lambda n=n: call(n))) for n in range(8001, 8009)
    ]
    first, second = (sorted(column)[len(column) // 2] * 1e3 for column in zip(*times, strict=True))
    return [f"a new length: {first:.1f} ms, the same again: {second:.1f} ms"]
