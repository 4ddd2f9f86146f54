"""Where the time of a step goes: events of the GPU's own clock, read once a log interval."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_aia.runtime.device import has_cuda
from megatron_aia.runtime.watchdog import watchdog

_DOING = {
    "data": "reading the samples of a step, or waiting for a rank that does",
    "forward_backward": "forward and backward of a step",
    "gradient_reduction": "reducing the gradients of a step",
    "optimizer": "the update of a step",
    "save": "saving a checkpoint",
}
"""What the watchdog says of a span."""


class StepTimers:
    """Sums the time of named spans. A span inside another takes its time from it.

    The watchdog knows a span by its name.

    Entering and leaving a span does not wait for a GPU.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self._spans: list[tuple[str, str | None, Any, Any]] = []

    @contextlib.contextmanager
    def span(self, name: str, on_host: bool = False) -> Iterator[None]:
        """Time what runs inside.

        Args:
            name: spans of one name are added up.
            on_host: time the host, not what it lets the GPU do.
        """
        now: Callable[[], Any] = time.perf_counter if on_host or not has_cuda() else _event
        outer = self._open[-1] if self._open else None
        self._open.append(name)
        watchdog.at(_DOING.get(name, name))
        start = now()
        try:
            yield
        finally:
            self._open.pop()
            self._spans.append((name, outer, start, now()))

    def take(self) -> dict[str, float]:
        """Return the seconds of every span since the last call; waits for the last event."""
        seconds: dict[str, float] = {}
        for name, outer, start, end in self._spans:
            taken = _seconds(start, end)
            seconds[name] = seconds.get(name, 0.0) + taken
            if outer is not None:
                seconds[outer] = seconds.get(outer, 0.0) - taken
        self._spans.clear()
        return seconds


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
