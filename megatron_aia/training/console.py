"""The lines that a run prints: a banner at the start, then one line a log step."""

import math
import textwrap

from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.analysis.records import LogRecord
from megatron_aia.analysis.validation import ValidationRecord

_TASK_LABELS = {
    Task.GENERATION: "gen",
    Task.UNDERSTANDING: "und",
    Task.TEXT: "text",
    Task.MIXED: "mixed",
}
_PHASE_LABELS = {
    "data": "data",
    "forward_backward": "fwd+bwd",
    "gradient_reduction": "reduce",
    "optimizer": "optimizer",
    "validation": "validation",
    "samples": "samples",
    "save": "save",
}
_MISSING = "-"
_BANNER_COLUMNS = 100


class EtaEstimator:
    """Time left, from a running mean of the step time that forgets old intervals.

    An interval counts by its number of steps: a slow first step, reported alone, soon stops
    mattering, and a change of speed shows within a few log steps.
    """

    _KEPT_PER_RECORD = 0.8

    def __init__(self, start_iteration: int = 0) -> None:
        """Begin at the iteration that the run starts or resumes from."""
        self._last_iteration = start_iteration
        self._seconds = 0.0
        self._iterations = 0.0

    def update(self, record: LogRecord) -> float:
        """Take in the newest record and return the expected seconds to the end of the run."""
        new_iterations = record.iteration - self._last_iteration
        self._last_iteration = record.iteration
        new_seconds = new_iterations * record.seconds_per_iteration
        self._seconds = self._KEPT_PER_RECORD * self._seconds + new_seconds
        self._iterations = self._KEPT_PER_RECORD * self._iterations + new_iterations
        return (record.train_iters - record.iteration) * self._seconds / self._iterations


def format_record(record: LogRecord, eta_seconds: float) -> str:
    """Return the console line of a log step; columns stay in place from line to line.

    Args:
        record: what happened since the last line.
        eta_seconds: expected time to the end of the run, see ``EtaEstimator``.
    """
    skipped = f"skipped {record.skipped_iterations}"
    if record.total_skipped:
        skipped += f" (total {record.total_skipped})"
    if record.corrupt_samples:
        skipped += f"  corrupt {record.corrupt_samples}"
    groups = [
        [_format_progress(record), f"ETA {format_duration(eta_seconds):>7}"],
        [
            f"{record.seconds_per_iteration:.2f} s/iter",
            f"{record.tokens_per_second:7,.0f} tokens/s",
        ],
        [f"lr {record.learning_rate:.1e}"],
        [
            f"loss {record.loss:.3f}",
            *(f"{term} {_format_tasks(by_task)}" for term, by_task in record.losses.items()),
        ],
        [f"grad {_format_number(record.grad_norm)}", skipped],
    ]
    return " | ".join("  ".join(group) for group in groups)


def format_validation(record: ValidationRecord) -> str:
    """Return the console line of a validation."""
    terms = "  ".join(f"{term} {_format_tasks(tasks)}" for term, tasks in record.losses.items())
    head = f"validation after iteration {record.iteration}, {record.samples} samples"
    return f"{head} | loss {record.loss:.3f}  {terms}"


def format_instruments(record: LogRecord) -> str:
    """Return the second console line of a log step, of ``--log-throughput``."""
    speed = f"{record.tflops_per_device:.4g} TFLOP/s a device"
    if record.aia_tflops_per_device:
        speed += f" (AIA {record.aia_tflops_per_device:.2g} more)"
    if not math.isnan(record.mfu):
        speed += f"  MFU {record.mfu:.1%}"
    memory = "  ".join(f"{kind} {size / 2**30:.2f}" for kind, size in record.memory.items())
    shares = "  ".join(
        f"{_PHASE_LABELS[phase]} {seconds / record.seconds_per_iteration:.0%}"
        for phase, seconds in record.phases.items()
        if seconds or phase not in ("validation", "samples")
    )
    slowest = f"slowest rank {record.slowest_rank} (x {record.rank_spread:.2f})"
    return " | ".join([f"    {speed}", f"GiB {memory}", shares, slowest])


def format_banner(lines: list[tuple[str, str]]) -> str:
    """Return (name, value) pairs as an aligned block between two rules; long values wrap."""
    name_columns = max((len(name) for name, _ in lines), default=0)
    indent = " " * (name_columns + 2)
    rule = "-" * _BANNER_COLUMNS
    block = [rule]
    for name, value in lines:
        wrapped = [
            piece
            for line in value.splitlines()
            for piece in textwrap.wrap(line, _BANNER_COLUMNS - len(indent))
        ] or [_MISSING]
        block.append(f"{name:<{name_columns}}  {wrapped[0]}")
        block.extend(indent + piece for piece in wrapped[1:])
    return "\n".join([*block, rule])


def format_duration(seconds: float) -> str:
    """Return seconds as ``h:mm:ss``, or as days and hours from two days on."""
    if not math.isfinite(seconds):
        return _MISSING
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}:{minute:02}:{second:02}"
    days, hour = divmod(hours, 24)
    return f"{days} d {hour:02} h"


def _format_progress(record: LogRecord) -> str:
    columns = len(str(record.train_iters))
    percent = 100 * record.iteration // max(record.train_iters, 1)
    return f"iteration {record.iteration:>{columns}}/{record.train_iters} ({percent:2} %)"


def _format_tasks(values: dict[Task, float]) -> str:
    """Return the values by task: always those of the AIA tasks, any other where there is one."""
    tasks = [*AIA_TASKS, *(task for task in (Task.TEXT, Task.MIXED) if task in values)]
    return " ".join(
        f"{_TASK_LABELS[task]} {_format_number(values.get(task, math.nan))}" for task in tasks
    )


def _format_number(value: float) -> str:
    text = _MISSING if math.isnan(value) else f"{value:.3f}"
    return f"{text:>5}"
