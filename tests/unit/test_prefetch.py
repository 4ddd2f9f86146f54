"""Steps that workers read ahead are the steps that are read when they are asked for."""

import gc
import multiprocessing
import os
import re
import signal
from dataclasses import fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from test_follow_parent import wait_until_gone
from toy_data import ToyEncoder, toy_batches, toy_encoder, toy_samples, write_folder

from megatron_aia.data import prefetch
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.prefetch import Prefetcher
from megatron_aia.data.replacements import CorruptSamplesFound
from megatron_aia.data.sample import TokenizedSample
from megatron_aia.shards.raw_sample import CorruptSampleError, RawSample

GBS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [*toy_samples("generation", 17), *toy_samples("understanding", 19)]
    return write_folder(tmp_path_factory.mktemp("data"), samples)


def values(batches: list[MicroBatch]) -> list[Any]:
    """Return everything a step holds, as what compares by value."""
    found: list[Any] = []
    for batch in batches:
        for field in fields(batch):
            value = getattr(batch, field.name)
            if isinstance(value, torch.Tensor):
                found.append((field.name, value.dtype, value.tolist()))
            elif field.name == "targets":
                for name, target in value.items():
                    found += [(name, c.dtype, c.tolist()) for c in vars(target).values()]
            elif field.name == "segments":
                for segment in value:
                    terms = [(t.task, t.queries.tolist(), t.keys.tolist()) for t in segment.terms]
                    place = (segment.batch_index, segment.start, segment.stop, segment.position)
                    found.append((place, terms))
            else:
                found.append((field.name, value))
    return found


def private_megabytes(process: int) -> float:
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Private_Dirty:\s+(\d+) kB", text, re.MULTILINE))) / 1024


def test_a_worker_that_collects_garbage_copies_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [{"number": number} for number in range(300_000)]  # 80 MB
    build = prefetch._MicroBatches.__getitem__

    def collect_and_build(self: Any, request: Any) -> Any:
        gc.collect()
        return build(self, request)

    monkeypatch.setattr(prefetch._MicroBatches, "__getitem__", collect_and_build)
    prefetcher = Prefetcher(toy_batches(folder), 1)
    prefetcher.step(0)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    assert private_megabytes(worker.pid) < 40
    prefetcher.close()
    assert not gc.get_freeze_count()
    assert len(objects) == 300_000


@pytest.mark.parametrize(("num_workers", "length_multiple"), [(1, 0), (2, 4), (3, 0)])
def test_the_same_steps_with_any_number_of_workers(
    folder: Path, num_workers: int, length_multiple: int
) -> None:
    inline, ahead = (
        replace(toy_batches(folder, size=2), length_multiple=length_multiple) for _ in range(2)
    )
    prefetcher = Prefetcher(ahead, num_workers)
    # A run, and one that goes on at another place.
    for position in [*range(0, 8 * GBS, GBS), 3 * GBS, 4 * GBS, 5]:
        assert values(prefetcher.step(position)) == values(inline.step(position))
    prefetcher.close()
    assert not multiprocessing.active_children()


def test_no_random_number_of_the_run_is_drawn(folder: Path) -> None:
    before = torch.get_rng_state()
    prefetcher = Prefetcher(toy_batches(folder), 2)
    prefetcher.step(0)
    assert torch.equal(torch.get_rng_state(), before)


def spoiled(keys: tuple[str, ...], error: Exception) -> ToyEncoder:
    """Return a sample encoder that counts the tokens of some samples, but cannot write them."""

    class Spoiled(ToyEncoder):
        def __call__(self, sample: RawSample, drop_prompt: bool) -> TokenizedSample:
            if sample.key.endswith(keys):
                raise error
            return super().__call__(sample, drop_prompt)

    return Spoiled(toy_encoder._write)


@pytest.mark.parametrize("error", [ValueError("no such word"), OSError("the disk went away")])
def test_an_error_has_the_words_it_has_without_workers(folder: Path, error: Exception) -> None:
    prompt = spoiled(("generation003",), error)
    messages = []
    for num_workers in (0, 2):
        prefetcher = Prefetcher(toy_batches(folder, prompt), num_workers)
        with pytest.raises((ValueError, OSError)) as caught:
            for position in range(0, 40 * GBS, GBS):
                prefetcher.step(position)
        messages.append(str(caught.value))
    assert messages == [str(error)] * 2


def test_all_damage_of_a_step_is_found_at_once(folder: Path) -> None:
    prompt = spoiled(("1", "3", "5", "7"), CorruptSampleError("bad"))
    found = []
    for num_workers in (0, 2):
        prefetcher = Prefetcher(toy_batches(folder, prompt), num_workers)
        with pytest.raises(CorruptSamplesFound) as caught:
            prefetcher.step(0)
        found.append(sorted(caught.value.samples))
    assert found[0] == found[1]
    assert len(found[0]) > 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_steps_read_ahead_are_read_anew_after_damage(folder: Path, num_workers: int) -> None:
    """The damage is told when the steps that hold it have been read already."""
    batches = toy_batches(folder, num_workers=0)
    prefetcher = Prefetcher(batches, num_workers)
    prefetcher.step(0)
    address = batches.mixture.locate(GBS)
    damage = batches.find_corrupt(address.index_number, address.sample_number)
    assert damage is None
    batches.found_corrupt.add((address.index_number, address.sample_number))
    prefetcher.restart()
    expected = toy_batches(folder)
    before = values(expected.step(GBS))
    expected.found_corrupt.update(batches.found_corrupt)
    assert values(prefetcher.step(GBS)) == values(expected.step(GBS)) != before


def test_a_killed_worker_is_one_line(folder: Path) -> None:
    prefetcher = Prefetcher(toy_batches(folder), 2)
    prefetcher.step(0)
    for worker in multiprocessing.active_children():
        assert worker.pid
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ValueError, match=r"was killed.*--num-workers") as caught:
        for position in range(GBS, 40 * GBS, GBS):
            prefetcher.step(position)
    assert "\n" not in str(caught.value)


def read_and_wait(folder: Path, pipe: Connection) -> None:
    prefetcher = Prefetcher(toy_batches(folder), 2)
    prefetcher.step(0)
    pipe.send([child.pid for child in multiprocessing.active_children()])
    pipe.recv()


def test_workers_end_when_their_process_is_killed(folder: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=read_and_wait, args=(folder, theirs)
    )
    process.start()
    workers = ours.recv()
    assert len(workers) == 2
    process.kill()
    process.join()
    assert wait_until_gone(workers)
