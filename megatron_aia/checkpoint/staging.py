"""A folder that appears whole or not at all."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def check_target(target: Path, overwrite: bool, is_replaceable: Callable[[Path], bool]) -> None:
    """Check that a folder may be written.

    Args:
        target: what shall be written.
        overwrite: the user allows to replace an older result.
        is_replaceable: tells an older result from everything else, which stays.

    Raises:
        ValueError: something is there that must not be replaced.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not is_replaceable(target):
        raise ValueError(f"{target} exists and was not made by a conversion; choose another --save")
    if not overwrite:
        raise ValueError(f"{target} exists; pass --overwrite to replace it")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a folder beside ``target`` to write to; it takes its place if the block succeeds.

    Raises:
        ValueError: the file system refuses; nothing is left behind.
    """
    temporary = target.with_name(f".{target.name}.writing")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except OSError as error:
        raise ValueError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
