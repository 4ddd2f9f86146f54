"""Tables and figure of what was measured."""

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class Result:
    """One method at one length."""

    seconds: float
    time_ratio: float
    bytes: int
    memory_ratio: float
    rate: float
    """Operations a second that attention alone would need to be as fast."""
    is_reference: bool
    """What others are compared with; shown in numbers, not as a ratio."""


def exponent(by_length: dict[int, float]) -> float:
    """Return the slope of log(value) over log(length), from 1,024 tokens on."""
    points = [(math.log(n), math.log(value)) for n, value in by_length.items() if n >= 1024]
    if len(points) < 2:
        return math.nan
    return float(np.polyfit(*zip(*points, strict=True), 1)[0])


Table = dict[int, dict[str, Result]]


def print_table(shape: str, table: Table) -> None:
    lengths = list(table)
    print(f"\n{shape}: time and peak memory, as ratios to AIA off on the same kernel", flush=True)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    heads = [f"{n:,} time | memory" for n in lengths]
    print(f"| method | {' | '.join(heads)} | time ~ N^ | memory ~ N^ |")
    print("|---" * (2 * len(lengths) + 3) + "|")
    for name in dict.fromkeys(name for results in table.values() for name in results):
        found = {n: results[name] for n, results in table.items() if name in results}
        cells = []
        for n in lengths:
            result = found.get(n)
            if result is None:
                cells.append("- | -")
            elif result.is_reference:
                rate, size = result.rate / 1e12, result.bytes / 2**20
                cells.append(f"{result.seconds * 1e3:.1f} ms, {rate:.3g} TFLOP/s | {size:.1f} MiB")
            else:
                cells.append(f"{result.time_ratio:.3f} | {result.memory_ratio:.2f}")
        slopes = [
            exponent({n: r.seconds for n, r in found.items()}),
            exponent({n: float(r.bytes) for n, r in found.items()}),
        ]
        print(f"| {name} | {' | '.join(cells)} | {slopes[0]:.2f} | {slopes[1]:.2f} |")


def draw(tables: dict[str, Table], path: str, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(tables), 6.5), layout="constrained")
    axes = figure.subplots(2, len(tables), squeeze=False)
    for column, (shape, table) in enumerate(tables.items()):
        names = dict.fromkeys(name for results in table.values() for name in results)
        for name in names:
            found = {n: results[name] for n, results in table.items() if name in results}
            axes[0, column].plot(
                list(found), [r.time_ratio for r in found.values()], "o-", label=name
            )
            axes[1, column].plot(list(found), [r.memory_ratio for r in found.values()], "o-")
        axes[0, column].set_title(shape)
        axes[1, column].set_yscale("log", base=2)
        axes[1, column].set_ylim(bottom=min(0.5, axes[1, column].get_ylim()[0]))
        axes[0, column].set_ylim(0.9, None)
        for axis, label in zip(axes[:, column], ("time", "peak memory"), strict=True):
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
            axis.yaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}")
            axis.set_xlabel("tokens")
            axis.set_ylabel(f"{label} / AIA off")
            axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize="small")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=110)


def processor() -> str:
    """Return the processor's name where Linux says it."""
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.machine()
