"""Work shared by processes: the same results, and nobody is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_data import toy_sample, toy_samples, write_folder

from megatron_aia.runtime.workers import map_in_processes
from megatron_aia.shards.index import open_index

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")


def square(number: int) -> int:
    if number == 13:
        raise ValueError("13 is refused")
    return number * number


def end_at_3(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("num_workers", [0, 1, 2, 5, 50])
def test_results_come_in_order(num_workers: int) -> None:
    results = map_in_processes(square, range(12), num_workers, "square", "numbers")
    assert list(results) == [number * number for number in range(12)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_first_error_is_raised(num_workers: int) -> None:
    with pytest.raises(ValueError, match="13 is refused"):
        list(map_in_processes(square, range(40), num_workers, "square", "numbers"))


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(OSError, match=r"ended before its time \(count\); is there enough memory"):
        list(map_in_processes(end_at_3, range(10), 2, "count", "numbers"))


PARENT = """
import os, time
from megatron_aia.runtime.workers import map_in_processes

def wait(number):
    os.write(1, b"%d\\n" % os.getpid())  # one write: two processes share the pipe
    time.sleep(60)

list(map_in_processes(wait, range(4), 2, "wait", "numbers"))
"""


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    for worker in workers:
        for _ in range(200):
            if not is_alive(worker):
                break
            time.sleep(0.05)
        assert not is_alive(worker)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def test_an_index_is_the_same_from_any_number_of_processes(tmp_path: Path) -> None:
    samples = [s for t in ("generation", "mixed", "text") for s in toy_samples(t, 15)]
    folder = write_folder(tmp_path / "data", samples, samples_per_shard=4)
    kept = []
    for num_workers in (1, 2, 4):
        cache = tmp_path / f"cache {num_workers}"
        fingerprint = open_index(folder, cache, num_workers).fingerprint
        files = sorted(cache.rglob("*.npz"))
        assert [file.stem for file in files] == [f"table-{fingerprint}"]
        kept.append(files[0].read_bytes())
    assert kept[0] == kept[1] == kept[2]


def test_the_first_damaged_shard_is_named_by_any_number_of_processes(tmp_path: Path) -> None:
    samples = [*toy_samples("text", 20), toy_sample("text000", "text", "a", "b")]
    folder = write_folder(tmp_path / "data", samples, samples_per_shard=2)
    messages = []
    for wounded in ((), (9, 4)):
        for number in wounded:
            (folder / f"part-{number:05d}.tar").write_bytes(b"")
        for num_workers in (1, 3):
            with pytest.raises(ValueError) as caught:
                open_index(folder, num_workers=num_workers)
            messages.append(str(caught.value))
    assert messages[0] == messages[1] and "key text000 is there before" in messages[0]
    assert messages[2] == messages[3] and "part-00004.tar: cut short" in messages[2]
