"""What the intensities cost in one attention layer: time, memory, and how both grow.

    python benchmarks/attention_cost.py --figure benchmarks/attention_cost.png

One process. In every round all methods run forward and backward on the same tensors, one after
the other; a ratio is the median over rounds of a method's time over that of the same kernel with
AIA off in the same round. That runs twice, and the second against the first is the noise. PyTorch's
attention, a call for each sample, stands beside it. Memory is the peak of the allocator above the
inputs.

On a CPU the time is CPU time of one thread, which other processes disturb less than wall time; on a
GPU it is that of CUDA events. Defaults are the heads of Emu3 on one of eight tensor-parallel ranks.
"""

import argparse
import platform
import statistics
from functools import partial

import torch
from attention_sides.layer import DTYPES, SHAPES, SHORTEST, Layer, methods
from attention_sides.measure import ceiling, peak_bytes, seconds
from attention_sides.report import Result, Table, draw, print_table, processor

from megatron_aia.runtime.device import describe, has_cuda


def measure(shape: str, length: int, options: argparse.Namespace) -> dict[str, Result]:
    layer = Layer(shape, length, options)
    chosen = methods(shape, length, options.sampled_queries)
    steps = {name: partial(layer.step, run) for name, (run, _) in chosen.items()}
    memory = {name: peak_bytes(step) for name, step in steps.items()}  # also the warm-up
    rounds = options.rounds or max(3, min(15, 8192 // length))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step))
    return {
        name: Result(
            statistics.median(times[name]),
            statistics.median(a / b for a, b in zip(times[name], times[other], strict=True)),
            memory[name],
            memory[name] / memory[other],
            layer.operations / statistics.median(times[name]),
            is_reference=name == other,
        )
        for name, (_, other) in chosen.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtype", choices=DTYPES, default="bf16" if has_cuda() else "fp32")
    parser.add_argument("--heads", type=int, default=32 if has_cuda() else 4)
    parser.add_argument("--groups", type=int, default=8 if has_cuda() else 1)
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--sampled-queries", type=int, default=64)
    parser.add_argument("--rounds", type=int, help="unset, more for shorter sequences")
    parser.add_argument("--figure", help="PNG to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lengths = options.lengths or [1 << i for i in (range(10, 16) if has_cuda() else range(9, 14))]
    title = (
        f"{describe()}, {processor()}, Python "
        f"{platform.python_version()}; {options.heads} query heads, {options.groups} key heads, "
        f"head size {options.head_size}, {options.dtype}"
    )
    print(title)
    print(f"ceiling: {ceiling(DTYPES[options.dtype]) / 1e12:.3f} TFLOP/s for a matrix product")
    tables: dict[str, Table] = {}
    for shape in options.shapes:
        fitting = [n for n in lengths if n >= SHORTEST[shape]]
        tables[shape] = {n: measure(shape, n, options) for n in fitting}
        print_table(shape, tables[shape])
    if options.figure:
        draw(tables, options.figure, title)


if __name__ == "__main__":
    main()
