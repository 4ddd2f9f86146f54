"""What is written appears whole or not at all."""

import multiprocessing
import os
from pathlib import Path

import pytest

from megatron_aia.runtime.atomic import check_target, staged, write_file, write_text


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "note"
    write_text(file, "old")

    def fail(stream: object) -> None:
        stream.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_file(file, fail)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(error), staged(target) as folder:
        (folder / "new").touch()
        raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_a_full_disk_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(ValueError, match="out cannot be written: full"), staged(target):
        raise OSError("full")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process()
    process.start()
    process.join()
    ended, alive = (tmp_path / f".out.{pid}.writing" for pid in (process.pid, os.getppid()))
    for leftover in (ended, alive):
        leftover.mkdir()
    with staged(tmp_path / "out") as folder:
        (folder / "new").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"out", alive.name}
    assert (tmp_path / "out" / "new").exists()


def test_only_an_older_result_is_replaced(tmp_path: Path) -> None:
    def check(target: Path, overwrite: bool) -> None:
        check_target(target, overwrite, lambda folder: (folder / "mark").exists(), "stays")

    target = tmp_path / "out"
    check(target, False)
    target.mkdir()
    check(target, False)
    (target / "photo").touch()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="out exists and stays"):
            check(target, overwrite)
    (target / "mark").touch()
    with pytest.raises(ValueError, match="pass --overwrite to replace it"):
        check(target, False)
    check(target, True)
