"""The hidden folder of an unfinished build, from which a build that was killed goes on.

::

    .NAME.partial/
        build.json          what the build is: inputs and settings
        checked             all records were checked
        range-000000.json   journal of a finished range of records
        data/               what becomes the output
        replaced/           the folder that was at the output before

Every file appears under its name by a rename, when all of it is on the disk. A range is finished
when its journal is there.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from megatron_aia.building.dropped import DroppedRecord
from megatron_aia.runtime.atomic import check_target, write_text
from megatron_aia.shards.folder import DESCRIPTION_FILE

_CHUNK = 1 << 22
_MEANING = "build.json"


@dataclass(frozen=True)
class FinishedRange:
    """What became of a range of records."""

    number: int
    num_samples: dict[str, int]
    """By task."""
    dropped: tuple[DroppedRecord, ...]
    sha256: str
    """Of its shard; empty if no sample was left to write."""


class WorkFolder:
    """Such a folder, locked while a ``with`` statement runs.

    The end of the statement leaves finished ranges for the next build; without any the folder goes
    away.

    Args:
        output: the folder to make.

    Raises:
        ValueError: another process builds the same output.
    """

    def __init__(self, output: Path) -> None:
        self.output = output.absolute()
        self.path = self.output.parent / f".{self.output.name}.partial"
        self.data = self.path / "data"

    def __enter__(self) -> "WorkFolder":
        self.path.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise ValueError(
                f"another process is building {self.output}; wait for it or choose another --output"
            ) from None
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._has_ranges():
            shutil.rmtree(self.path)
        os.close(self._descriptor)

    @property
    def is_moved(self) -> bool:
        """Whether the build has its place already, and only cleaning up is left."""
        is_build = (self.path / _MEANING).exists() and not self.data.exists()
        return is_build and (self.output / DESCRIPTION_FILE).exists()

    def meaning(self) -> dict[str, str]:
        """Return the inputs and settings of the build that is kept here; empty if there is none."""
        try:
            return dict(json.loads((self.path / _MEANING).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def begin(self, meaning: Mapping[str, str], overwrite: bool) -> None:
        """Take up the build that is kept here, or start a new one.

        Args:
            meaning: inputs and settings that decide the result, by name.
            overwrite: start afresh where they differ.

        Raises:
            ValueError: they differ, and there are finished ranges.
        """
        kept = self.meaning()
        changed = sorted(
            name for name in {**kept, **meaning} if kept.get(name) != meaning.get(name)
        )
        if kept and changed and self._has_ranges() and not overwrite:
            raise ValueError(
                f"{self.path} holds an unfinished build with another {', '.join(changed)}; repeat "
                "its command to go on with it, or pass --overwrite to start afresh"
            )
        if changed:
            (self.path / _MEANING).unlink(missing_ok=True)
            for path in self.path.iterdir():
                _remove(path)
        # First the folder: without it, the other file says that the build is moved.
        self.data.mkdir(exist_ok=True)
        if changed:
            write_text(self.path / _MEANING, json.dumps(meaning))
        for leftover in self.path.glob("*.tmp"):
            leftover.unlink()

    @property
    def is_checked(self) -> bool:
        """Whether all records were checked."""
        return (self.path / "checked").exists()

    def set_checked(self) -> None:
        """Note that all records were checked."""
        write_text(self.path / "checked", "")

    def shard(self, number: int) -> Path:
        """Return where the shard of a range goes."""
        return self.data / f"shard-{number:06d}.tar"

    def finish_range(
        self,
        number: int,
        num_samples: Mapping[str, int],
        dropped: list[DroppedRecord],
        shard: Path | None,
    ) -> FinishedRange:
        """Put a written shard in its place, then its journal.

        Args:
            number: of the range.
            num_samples: by task.
            dropped: records of the range that are left out.
            shard: under a temporary name; None if no sample was left.
        """
        digest = "" if shard is None else _sha256(shard)
        if shard is not None:
            os.replace(shard, self.shard(number))
        finished = FinishedRange(number, dict(num_samples), tuple(dropped), digest)
        write_text(self.path / f"range-{number:06d}.json", json.dumps(asdict(finished)))
        return finished

    def finished_range(self, number: int) -> FinishedRange | None:
        """Return the journal of a range, or None where the range has to be built.

        The shard is compared with its hash: a machine that lost power may have lost parts of it.
        """
        try:
            entry = json.loads((self.path / f"range-{number:06d}.json").read_bytes())
            finished = FinishedRange(
                number=number,
                num_samples=entry["num_samples"],
                dropped=tuple(DroppedRecord(**record) for record in entry["dropped"]),
                sha256=entry["sha256"],
            )
            if finished.sha256 and _sha256(self.shard(number)) != finished.sha256:
                return None
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return finished

    def forget_ranges_with_dropped(self) -> None:
        """Remove the journals of ranges with dropped records, for these may be corrected now."""
        for path in self.path.glob("range-*.json"):
            if json.loads(path.read_bytes())["dropped"]:
                path.unlink()

    def move_to_output(self) -> None:
        """Let the finished data take the place of the output, which is there at every moment."""
        replaced = self.path / "replaced"
        if self.output.exists():
            os.replace(self.output, replaced)
        os.replace(self.data, self.output)

    def clean_up(self) -> None:
        """Remove all that is left here; what tells that the build is finished goes last."""
        for path in self.path.iterdir():
            if path.name != _MEANING:
                _remove(path)
        (self.path / _MEANING).unlink()

    def _has_ranges(self) -> bool:
        return any(self.path.glob("range-*.json"))


def check_output(output: Path, overwrite: bool) -> None:
    """Check that a data folder may be written to ``output``.

    Raises:
        ValueError: something is there that must not be replaced.
    """
    check_target(output, overwrite, _is_data_folder, "is no data folder; choose another --output")


def _is_data_folder(path: Path) -> bool:
    return (path / DESCRIPTION_FILE).is_file()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
