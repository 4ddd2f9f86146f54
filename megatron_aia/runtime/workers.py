"""The same work on many items, in several processes."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from tqdm import tqdm

from megatron_aia.runtime.processes import follow_parent

_T = TypeVar("_T")
_R = TypeVar("_R")
_QUIET_SECONDS = 3

_function: Callable[[Any], Any]
"""In a worker process: what it does."""


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    function: Callable[[_T], _R], items: Sequence[_T], num_workers: int, label: str, unit: str
) -> Iterator[_R]:
    """Yield ``function`` of every item, in order, with a progress bar once it takes a while.

    Args:
        function: without effects of its own; what it raises is raised here. Worker processes
            inherit it, so it may hold much and may be a closure.
        items: can be pickled, as the results can.
        num_workers: processes; with less than 2, this one does the work.
        label: of the progress bar.
        unit: what an item is, for the progress bar.

    Raises:
        OSError: a process ended before its time.
    """
    results: Iterable[_R]
    num_workers = min(num_workers, len(items))
    # Elsewhere processes begin by running the main program once more.
    if num_workers < 2 or not sys.platform.startswith("linux"):
        results = map(function, items)
        yield from _with_progress(results, len(items), label, unit)
        return
    with ProcessPoolExecutor(
        num_workers, mp_context=get_context("fork"), initializer=_start, initargs=(function,)
    ) as pool:
        try:
            results = pool.map(_work, items)
            yield from _with_progress(results, len(items), label, unit)
        except BrokenProcessPool:
            raise OSError(
                f"a worker process ended before its time ({label}); is there enough memory?"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _with_progress(results: Iterable[_R], total: int, label: str, unit: str) -> Iterator[_R]:
    yield from tqdm(results, label, total, unit=f" {unit}", mininterval=1, delay=_QUIET_SECONDS)


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    follow_parent()


def _work(item: Any) -> Any:
    return _function(item)
