"""Files and folders that appear under their names whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place and rename it when all of it is on the disk.

    Many processes may write the same file at once; the last one wins.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as ``write_file`` does."""
    write_file(path, lambda file: file.write(text.encode()))


def check_target(
    target: Path, overwrite: bool, is_replaceable: Callable[[Path], bool], otherwise: str
) -> None:
    """Check that a folder may be written.

    Args:
        target: what shall be written.
        overwrite: the user allows to replace an older result.
        is_replaceable: tells an older result from everything else, which stays.
        otherwise: what to say of everything else.

    Raises:
        ValueError: something is there that must not be replaced.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not is_replaceable(target):
        raise ValueError(f"{target} exists and {otherwise}")
    if not overwrite:
        raise ValueError(f"{target} exists; pass --overwrite to replace it")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a folder beside ``target`` to write to; it takes its place if the block succeeds.

    What a killed process left of an earlier attempt is removed.

    Raises:
        ValueError: the file system refuses; nothing is left behind.
    """
    target = target.absolute()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.writing")
    try:
        for leftover in target.parent.glob(f".{target.name}.*.writing"):
            if leftover == temporary or not _is_process(leftover.name.split(".")[-2]):
                shutil.rmtree(leftover)
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_process(number: str) -> bool:
    try:
        os.kill(int(number), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True
