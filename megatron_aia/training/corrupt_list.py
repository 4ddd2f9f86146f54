"""The corrupt samples of a run, listed where people will look."""

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_aia.analysis.records import end_lines
from megatron_aia.config import Config
from megatron_aia.data.mixture import Mixture
from megatron_aia.data.replacements import CorruptSample

CORRUPT_FILE = "corrupt_samples.jsonl"
_EARLIER_NAME = "damaged_samples.jsonl"

_Name = tuple[str, str]
"""Data folder, and key of the sample there."""

logger = logging.getLogger(__name__)


class CorruptList:
    """Names every corrupt sample once: in the log, and in a file beside the checkpoints.

    Args:
        config: of the run; its ``save`` folder, else the TensorBoard folder, gets the file.
        mixture: the samples of the run.
    """

    def __init__(self, config: Config, mixture: Mixture) -> None:
        self._mixture = mixture
        self._limit = config.data.max_corrupt_samples
        folder = config.checkpoint.save or config.logging.tensorboard_dir
        self._file = Path(folder) / CORRUPT_FILE if folder else None
        self._written: dict[_Name, int] = {}
        for file in (self._file.with_name(_EARLIER_NAME), self._file) if self._file else ():
            if file.exists():
                end_lines(file)
                self._written |= _read(file)
        self._known: set[_Name] = set()

    def __len__(self) -> int:
        return len(self._known)

    def earlier(self) -> Iterator[tuple[int, int]]:
        """Yield (index number, sample number) of what an earlier start of the run listed."""
        folders = {str(index.folder): i for i, index in enumerate(self._mixture.indexes)}
        for (folder, key), number in self._written.items():
            index_number = folders.get(folder)
            if index_number is not None:
                index = self._mixture.indexes[index_number]
                if number < len(index) and index.key(number) == key:
                    yield index_number, number

    def add(self, samples: Iterable[CorruptSample], position: int | None) -> None:
        """Name the samples that are not on the list yet.

        Args:
            samples: what was found.
            position: of the first sample of the step that met them; None before the first step.

        Raises:
            ValueError: the list holds more than ``--max-corrupt-samples``.
            OSError: the file cannot be written.
        """
        for sample in samples:
            index = self._mixture.indexes[sample.index_number]
            name = (str(index.folder), index.key(sample.sample_number))
            if name not in self._known:
                self._known.add(name)
                logger.info("a replacement takes the place of a corrupt sample: %s", sample.reason)
                if name not in self._written:
                    self._write(name, sample, position)
            if len(self._known) > self._limit:
                raise ValueError(
                    f"more than --max-corrupt-samples {self._limit} samples are corrupt, the last: "
                    f"{sample.reason}; or allow more"
                )

    def _write(self, name: _Name, sample: CorruptSample, position: int | None) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        entry = {
            "folder": name[0],
            "sample": name[1],
            "number": sample.sample_number,
            "reason": sample.reason,
            "step_position": position,
        }
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _read(path: Path) -> dict[_Name, int]:
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(entry["folder"], entry["sample"]): entry["number"] for entry in entries}
