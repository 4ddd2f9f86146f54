"""Forked processes that end with the process that forked them."""

import os
import signal
import threading

_SECONDS_BETWEEN_LOOKS = 0.5


def follow_parent() -> None:
    """Make this forked process end when its parent does, or when the parent sends SIGTERM.

    SIGTERM and SIGINT of anybody else are ignored: a cluster, or Ctrl-C, sends them to all
    processes of a job at once, and the parent may want to finish a step and save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    # A parent that is killed closes nothing that its other children hold open: ask for it.
    while os.getppid() == parent:
        received = signal.sigtimedwait([signal.SIGTERM], _SECONDS_BETWEEN_LOOKS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
