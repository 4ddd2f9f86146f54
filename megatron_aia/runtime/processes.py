"""Processes and those they forked: neither outlives the other's sudden death."""

import contextlib
import ctypes
import logging
import multiprocessing.process
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SECONDS_BETWEEN_LOOKS = 0.5
_PR_SET_PDEATHSIG = 1
logger = logging.getLogger(__name__)


def follow_parent() -> None:
    """Make this forked process end when its parent does, or when the parent sends SIGTERM.

    SIGTERM and SIGINT of anybody else are ignored: a cluster, or Ctrl-C, sends them to all
    processes of a job at once, and the parent may want to finish a step and save.
    """
    _ask_to_be_killed_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _ask_to_be_killed_with_parent() -> None:
    """Let Linux end this process with its parent even while it is stopped and cannot look."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _watch(parent: int) -> None:
    # A parent that is killed closes nothing that its other children hold open: ask for it.
    while os.getppid() == parent:
        received = signal.sigtimedwait([signal.SIGTERM], _SECONDS_BETWEEN_LOOKS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


@contextmanager
def end_with_children(purpose: str) -> Iterator[None]:
    """End this process if a process that it forks in the ``with`` statement is killed.

    Whoever waits for the result of such a child may wait for ever. The job's launcher sees that
    this process ends, and starts the job anew.

    Args:
        purpose: of the children, for the log.
    """
    before, done = _children(), threading.Event()
    thread = threading.Thread(target=_watch_children, args=(before, done, purpose), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def kill_children() -> None:
    """Kill the processes that this one has forked, whatever they wait for."""
    for child in _children():
        child.kill()


def _children() -> set[Any]:
    # The public function forgets those that have ended, which are the ones to look for.
    return set(multiprocessing.process._children)  # type: ignore[attr-defined]


def _watch_children(before: set[Any], done: threading.Event, purpose: str) -> None:
    seen: set[Any] = set()
    while not done.wait(_SECONDS_BETWEEN_LOOKS):
        seen |= _children() - before
        for child in seen:
            if child.exitcode is not None and child.exitcode < 0:
                logger.error(
                    "a process %s was killed (signal %d), as the system does when memory runs out; "
                    "this rank ends, start the job again",
                    purpose,
                    -child.exitcode,
                )
                os._exit(1)
