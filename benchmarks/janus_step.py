"""One optimizer step of Janus-Pro's AIA training: this project beside a plain recipe, on a CPU.

    python benchmarks/janus_step.py [--rounds 5]

Two processes hold the same weights and the same samples, four to draw and four to look at. They
take turns, step by step, so that what else the machine does falls on both. The recipe stands in
``janus_sides/recipe.py``; its parts are turned off one by one to see what each costs.
"""

import ctypes
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from janus_sides.task import Losses, Sizes

from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options

AS_DESCRIBED = "as described"
OURS = "this project"
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass
class Options(Sizes):
    rounds: int = 5
    """Rounds that are measured, after one that is not."""


@dataclass(frozen=True)
class Measure:
    """One step."""

    losses: Losses
    wall: float
    """Seconds."""
    cpu: float
    """Seconds of this process."""
    memory: float
    """Bytes: the peak of resident memory in the step above what was resident before it."""
    positions: int
    tokens: int


Case = tuple[str, str]
"""Side or recipe, and task."""


def serve(is_ours: bool, sizes: Sizes, pipe: Connection) -> None:
    """Build one side, then measure a step whenever asked."""
    import torch

    torch.set_num_threads(1)
    side: Any
    if is_ours:
        from janus_sides.ours import Ours

        side = Ours(sizes)
    else:
        from janus_sides.recipe import RECIPES, Reference

        side = Reference(sizes)
    pipe.send(None)
    while (case := pipe.recv()) is not None:
        name, task = case
        arguments = (task,) if is_ours else (task, RECIPES[name])
        tokens = sum(len(sample) for sample in side.samples[task])
        step = partial(side.step, *arguments)
        pipe.send(measure(step, side.positions(*arguments), tokens))


def measure(step: Callable[[], Losses], positions: int, tokens: int) -> Measure:
    # Freed memory goes back first, or a step after a larger one would be charged for less.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    _CLEAR.write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    losses = step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Measure(losses, wall, cpu, resident("VmHWM") - before, positions, tokens)


def resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    assert found
    return int(found[1]) * 1024


def run_rounds(options: Options) -> dict[Case, list[Measure]]:
    """Let both processes take turns; return the steps of the measured rounds."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for is_ours in (True, False):
        pipes[is_ours], theirs = context.Pipe()
        context.Process(target=serve, args=(is_ours, options, theirs), daemon=True).start()
        pipes[is_ours].recv()
    from janus_sides.recipe import RECIPES

    recipes = [(name, task) for name in RECIPES for task in ("gen", "und")]
    ours = [(OURS, task) for task in ("mixed", "gen", "und")]
    order = [*recipes[:2], *ours, *recipes[2:]]
    results: dict[Case, list[Measure]] = {case: [] for case in order}
    for number in range(options.rounds + 1):
        for case in order:
            pipe = pipes[case[0] == OURS]
            pipe.send(case)
            found = pipe.recv()
            if number:
                results[case].append(found)
        print(f"round {number} of {options.rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
    for pipe in pipes.values():
        pipe.send(None)
    return results


def check_agreement(results: dict[Case, list[Measure]]) -> None:
    """Compare what both sides computed on the batches of one task."""
    for task in ("gen", "und"):
        ours, theirs = (results[side, task][0].losses for side in (OURS, AS_DESCRIBED))
        for name in ("next_token", "aia", "grad_norm"):
            one, other = getattr(ours, name), getattr(theirs, name)
            difference = abs(one / other - 1)
            print(f"{task} {name}: {one:.6f}, recipe {other:.6f}, relative {difference:.1e}")
            assert difference < 1e-4, "the two sides do not compute the same"


def spread(values: list[float], digits: int = 2) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def print_steps(results: dict[Case, list[Measure]]) -> None:
    print("\n| step | padding | wall s | CPU s | tokens/s | peak MB |\n|---|---|---|---|---|---|")
    for (name, task), steps in results.items():
        padding = 1 - steps[0].tokens / steps[0].positions
        wall, cpu = (spread([getattr(s, key) for s in steps]) for key in ("wall", "cpu"))
        rate = median([s.tokens / s.wall for s in steps])
        memory = median([s.memory for s in steps]) / 1e6
        print(f"| {name}, {task} | {padding:.0%} | {wall} | {cpu} | {rate:.0f} | {memory:.0f} |")


def print_ratios(results: dict[Case, list[Measure]]) -> None:
    """Print recipe / ours: medians over rounds of the ratio within a round, lowest and highest."""

    def ratios(name: str, task: str, key: str) -> list[float]:
        ours = [getattr(step, key) for step in results[OURS, task]]
        if task != "mixed":
            theirs = [getattr(step, key) for step in results[name, task]]
        else:
            # The recipe takes two steps for the same samples; memory is that of the larger.
            pairs = zip(results[name, "gen"], results[name, "und"], strict=True)
            join = max if key == "memory" else sum
            theirs = [join(getattr(step, key) for step in pair) for pair in pairs]
        return [a / b for a, b in zip(theirs, ours, strict=True)]

    names = list(dict.fromkeys(name for name, _ in results if name != OURS))
    print("\n| recipe / this project | samples | wall | CPU | peak memory |\n|---|---|---|---|---|")
    cases = [(AS_DESCRIBED, "gen"), (AS_DESCRIBED, "und"), *((name, "mixed") for name in names)]
    for name, task in cases:
        values = [spread(ratios(name, task, key)) for key in ("wall", "cpu", "memory")]
        print(f"| {name} | {task} | {' | '.join(values)} |")


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    results = run_rounds(options)
    check_agreement(results)
    print_steps(results)
    print_ratios(results)


if __name__ == "__main__":
    main()
