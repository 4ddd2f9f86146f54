"""Work on a range of records: the same in the main process and in a worker."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from megatron_aia.building.convert_records import Record, RecordError
from megatron_aia.building.dropped import DroppedRecord
from megatron_aia.building.images import check_images, stored_image
from megatron_aia.building.options import BuildOptions
from megatron_aia.building.sample_files import task_of_record
from megatron_aia.building.shard_writer import ShardFile
from megatron_aia.building.sources import Part, convert_part
from megatron_aia.building.work_folder import FinishedRange, WorkFolder
from megatron_aia.shards.image_tokenizer import ImageTokenizer

RecordsDone = int
"""Records that were done since the last report."""
_SECONDS_BETWEEN_REPORTS = 0.5


@dataclass(frozen=True)
class RangeJob:
    """What to do with which records."""

    action: Literal["check", "write"]
    number: int
    """Of the range, and of its shard."""
    first: int
    """Number of the first record."""
    num_records: int
    part: Part


class RangeBuilder:
    """Does jobs one after the other.

    Args:
        options: of the build.
        load_tokenizer: called when the first shard is to be written.
    """

    def __init__(
        self, options: BuildOptions, load_tokenizer: Callable[[], ImageTokenizer | None]
    ) -> None:
        self._options = options
        self._load_tokenizer = load_tokenizer
        self._work = WorkFolder(options.output)

    def run(self, job: RangeJob) -> Iterator[RecordsDone | FinishedRange]:
        """Do a job; yield its progress every now and then, and what became of it at last.

        Raises:
            ValueError: the input is damaged or has changed.
        """
        finished = self._work.finished_range(job.number) if job.action == "write" else None
        if finished is not None:
            yield job.num_records
            yield finished
        elif job.action == "write":
            yield from self._write(job)
        else:
            yield from self._check(job)

    def _check(self, job: RangeJob) -> Iterator[RecordsDone | FinishedRange]:
        dropped = []
        report = _Report()
        for number, record in _read(job):
            try:
                check_images(self._options, _or_raise(record))
            except RecordError as error:
                dropped.append(DroppedRecord.of(number, error))
            yield from report.count()
        yield from report.rest()
        yield FinishedRange(job.number, {}, tuple(dropped), "")

    def _write(self, job: RangeJob) -> Iterator[RecordsDone | FinishedRange]:
        num_samples: Counter[str] = Counter()
        dropped = []
        report = _Report()
        temporary = self._work.path / f"shard-{job.number:06d}.{os.getpid()}.tmp"
        with ShardFile(temporary, self._options.codes_suffix) as shard:
            for number, found in _read(job):
                try:
                    record = _or_raise(found)
                    images = [
                        stored_image(self._options, self._tokenizer, record, i)
                        for i in range(len(record.images))
                    ]
                except RecordError as error:
                    dropped.append(DroppedRecord.of(number, error))
                else:
                    shard.add(
                        number,
                        record,
                        [codes for codes, _ in images],
                        [picture for _, picture in images],
                    )
                    num_samples[task_of_record(record)] += 1
                yield from report.count()
        yield from report.rest()
        yield self._work.finish_range(
            job.number, num_samples, dropped, temporary if num_samples else None
        )

    @cached_property
    def _tokenizer(self) -> ImageTokenizer | None:
        return self._load_tokenizer()


def _read(job: RangeJob) -> Iterator[tuple[int, Record | RecordError]]:
    """Yield (number, record, or what is wrong with it).

    Raises:
        ValueError: there are not as many records as when they were counted.
    """
    found = 0
    for number, record in enumerate(convert_part(job.part, job.first), job.first):
        found += 1
        yield number, record
    if found != job.num_records:
        raise ValueError("--records changed while it was read; start again")


def _or_raise(record: Record | RecordError) -> Record:
    if isinstance(record, RecordError):
        raise record
    return record


class _Report:
    """Adds records up, so that progress is told a few times a second and not for each."""

    def __init__(self) -> None:
        self._count = 0
        self._told = time.monotonic()

    def count(self) -> Iterator[RecordsDone]:
        """Count one record; yield the sum when it is time to."""
        self._count += 1
        if time.monotonic() - self._told > _SECONDS_BETWEEN_REPORTS:
            yield from self.rest()

    def rest(self) -> Iterator[RecordsDone]:
        """Yield what was not told yet."""
        yield self._count
        self._count = 0
        self._told = time.monotonic()
