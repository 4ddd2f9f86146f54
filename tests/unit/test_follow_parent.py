"""A forked process that ends with its parent, and with nobody else."""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection

import pytest

from megatron_aia.runtime.processes import end_with_children, follow_parent
from megatron_aia.runtime.workers import map_in_processes


def test_a_closure_is_inherited_and_nobody_is_left() -> None:
    offset = 7
    results = map_in_processes(lambda n: n * n + offset, range(50), 2, "square", "numbers")
    assert list(results) == [number * number + 7 for number in range(50)]
    assert not multiprocessing.active_children()


def start_followers(pipe: Connection) -> None:
    """Be a parent of two processes that would wait for ever."""
    for _ in range(2):
        child = os.fork()
        if not child:
            follow_parent()
            pipe.send(os.getpid())
            while True:
                time.sleep(60)
    time.sleep(60)


def is_running(process: int) -> bool:
    """Return whether a process of another parent is there and is no zombie."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(processes: list[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_running, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_running, processes))


def test_a_follower_ignores_others_and_ends_with_its_parent() -> None:
    ours, theirs = multiprocessing.Pipe()
    parent = multiprocessing.get_context("fork").Process(target=start_followers, args=(theirs,))
    parent.start()
    followers = [ours.recv() for _ in range(2)]
    for follower in followers:
        os.kill(follower, signal.SIGTERM)
        os.kill(follower, signal.SIGINT)
    time.sleep(0.3)
    assert all(map(is_running, followers))
    parent.kill()
    parent.join()
    assert wait_until_gone(followers)


def wait_for_child(code: int | None) -> None:
    """Wait for a child that is killed, or ends with ``code``; then go on without its result."""
    context = multiprocessing.get_context("fork")
    with end_with_children("under test"):
        child = context.Process(target=os._exit, args=(code,)) if code is not None else None
        child = child or context.Process(target=lambda: os.kill(os.getpid(), signal.SIGKILL))
        child.start()
        time.sleep(30 if code is None else 1.5)


@pytest.mark.parametrize(("code", "expected"), [(None, 1), (0, 0), (3, 0)])
def test_a_process_ends_with_a_child_that_is_killed(code: int | None, expected: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=wait_for_child, args=(code,))
    process.start()
    process.join(20)
    assert process.exitcode == expected
