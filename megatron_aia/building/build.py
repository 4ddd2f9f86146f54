"""From an input of records to a folder of shards; every record is written or counted."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from tqdm import tqdm

from megatron_aia.building.dropped import Dropped, read_dropped, write_dropped
from megatron_aia.building.options import BuildOptions
from megatron_aia.building.ranges import RangeBuilder, RangeJob, RecordsDone
from megatron_aia.building.sources import Source, open_source
from megatron_aia.building.work_folder import FinishedRange, WorkFolder, check_output
from megatron_aia.building.workers import Workers
from megatron_aia.models.image_tokenizers import load_image_tokenizer, owner_of_image_tokenizer
from megatron_aia.runtime.worker import use_one_thread, worker_device
from megatron_aia.shards.description import (
    FORMAT_VERSION,
    CodesOrigin,
    check_codebook_size,
    read_num_samples,
    write_description,
)
from megatron_aia.shards.image_tokenizer import ImageTokenizer

_Run = Callable[[Iterable[RangeJob]], Iterator[RecordsDone | FinishedRange]]


def build_shards(options: BuildOptions) -> tuple[Counter[str], Dropped]:
    """Convert all records, encode their images and write them.

    A shard holds a fixed range of the records, so neither the number of workers nor a build that
    was killed and goes on changes a byte. Where images are named by paths, records and the headers
    of their pictures are checked before the first image is encoded: most mistakes show at once.

    Returns:
        Samples by task, and what was left out.

    Raises:
        ValueError: more records do not fit than allowed, or an option is wrong.
    """
    options.check()
    with WorkFolder(options.output) as work:
        if not work.is_moved:
            check_output(options.output, options.overwrite)
        tokenizer = _load_tokenizer(options)
        source = open_source(options.records, options.format)
        meaning = _meaning(options, tokenizer, source)
        is_finished = work.is_moved and work.meaning() == meaning
        if work.is_moved:
            work.clean_up()
        if not is_finished:
            check_output(options.output, options.overwrite)
            work.begin(meaning, options.overwrite)
            _build(options, work, source, tokenizer)
    return read_num_samples(options.output), read_dropped(options.output)


def _load_tokenizer(options: BuildOptions) -> ImageTokenizer | None:
    """Load the image tokeniser, on the CPU if the workers do the work."""
    path = options.image_tokenizer
    device = worker_device(options.device, 0)
    if path is None:
        return None
    owner = owner_of_image_tokenizer(path) if path.is_dir() else None
    if owner and owner.understanding_images != options.understanding_images == "codes":
        raise ValueError(
            f"{path} is of --model {owner.name}, which does not look at codes; pass "
            "--understanding-images pictures"
        )
    tokenizer = load_image_tokenizer(
        path, options.image_area, "cpu" if options.num_workers else device
    )
    check_codebook_size(tokenizer)
    return tokenizer


def _meaning(
    options: BuildOptions, tokenizer: ImageTokenizer | None, source: Source
) -> dict[str, str]:
    """Return what decides the bytes of the shards, by the flag that sets it."""
    if tokenizer and source.codebook_size:
        raise ValueError(
            f"{options.records} holds codes already; leave out --image-tokenizer "
            f"{options.image_tokenizer}"
        )
    digest = hashlib.sha256()
    for file in source.files:
        status = file.stat()
        digest.update(repr((str(file.absolute()), status.st_size, status.st_mtime_ns)).encode())
    return options.meaning() | {
        "--records": digest.hexdigest(),
        "--image-tokenizer": tokenizer.fingerprint if tokenizer else "",
        "format version": str(FORMAT_VERSION),
    }


def _build(
    options: BuildOptions, work: WorkFolder, source: Source, tokenizer: ImageTokenizer | None
) -> None:
    with ExitStack() as stack:
        run: _Run
        if options.num_workers:
            run = stack.enter_context(Workers(options)).run
        else:
            run = _in_this_process(options, tokenizer)
        if not (source.holds_pictures or work.is_checked):
            checked = _in_order(_run(run, "check", options, source))
            _dropped_of(checked).check(options.allow_dropped)
            work.set_checked()
        finished: list[FinishedRange] = []
        num_dropped = 0
        for result in _run(run, "write", options, source):
            finished.append(result)
            num_dropped += len(result.dropped)
            if num_dropped > options.allow_dropped:
                # They may be corrected before the next build.
                work.forget_ranges_with_dropped()
                _dropped_of(_in_order(finished)).check(options.allow_dropped)
    _finish(options, work, _in_order(finished), tokenizer or _stored_codes(source))


def _in_this_process(options: BuildOptions, tokenizer: ImageTokenizer | None) -> _Run:
    use_one_thread()
    builder = RangeBuilder(options, lambda: tokenizer)
    return lambda jobs: (message for job in jobs for message in builder.run(job))


def _run(
    run: _Run, action: Literal["check", "write"], options: BuildOptions, source: Source
) -> Iterator[FinishedRange]:
    """Do something with all ranges and show a progress bar; yield ranges as they are finished."""
    size = options.samples_per_shard
    jobs = (
        RangeJob(action, number, first, stop - first, source.part(first, stop))
        for number, first in enumerate(range(0, len(source), size))
        for stop in [min(first + size, len(source))]
    )
    label = {"check": "check", "write": "encode"}[action]
    with tqdm(total=len(source), desc=label, unit=" records", mininterval=1) as bar:
        for message in run(jobs):
            if isinstance(message, FinishedRange):
                yield message
            else:
                bar.update(message)


def _in_order(ranges: Iterable[FinishedRange]) -> list[FinishedRange]:
    return sorted(ranges, key=lambda finished: finished.number)


def _dropped_of(ranges: Sequence[FinishedRange]) -> Dropped:
    return Dropped(record for finished in ranges for record in finished.dropped)


@dataclass(frozen=True)
class _StoredCodes:
    """The tokeniser of codes that the input held already."""

    name: str
    codebook_size: int


def _stored_codes(source: Source) -> _StoredCodes | None:
    size = source.codebook_size
    return _StoredCodes("made before", size) if size else None


def _finish(
    options: BuildOptions,
    work: WorkFolder,
    finished: Sequence[FinishedRange],
    codes: CodesOrigin | None,
) -> None:
    """Describe the folder and put it in its place."""
    num_samples = sum((Counter(result.num_samples) for result in finished), Counter[str]())
    if not num_samples:
        work.forget_ranges_with_dropped()
        raise ValueError(f"no sample to write to {options.output}")
    write_description(work.data, num_samples, codes, _dropped_of(finished).reasons)
    write_dropped(work.data, (record for result in finished for record in result.dropped))
    work.move_to_output()
    work.clean_up()
