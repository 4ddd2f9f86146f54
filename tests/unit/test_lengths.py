"""The table of token lengths: the same for any number of processes, and of true damage only."""

from pathlib import Path

import numpy as np
import pytest
from toy_data import CODEBOOK_SIZE, member_ends, toy_encoder, toy_samples, write_folder

from megatron_aia.data import lengths as module
from megatron_aia.data.lengths import CORRUPT, token_lengths
from megatron_aia.shards.index import open_index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = [*toy_samples("generation", 17), *toy_samples("understanding", 19)]
    return write_folder(tmp_path, samples)


def tables(folder: Path) -> list[Path]:
    return list((folder / ".index").glob("lengths-*.npy"))


def count(folder: Path, num_workers: int | None = None) -> np.ndarray:
    return token_lengths(open_index(folder), toy_encoder, CODEBOOK_SIZE, num_workers)


def spoil_codes(folder: Path) -> tuple[int, bytes]:
    """Zero the header of one array; return the sample's number and what stood there."""
    shard = sorted(folder.glob("*.tar"))[1]
    name, start, _ = next(entry for entry in member_ends(shard) if entry[0].endswith(".npy"))
    content = bytearray(shard.read_bytes())
    old = bytes(content[start : start + 6])
    content[start : start + 6] = bytes(6)
    shard.write_bytes(content)
    keys = [open_index(folder).key(i) for i in range(len(open_index(folder)))]
    return keys.index(f"{shard.name}/{name.split('.')[0]}"), old


def test_bytes_do_not_depend_on_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 5)
    spoil_codes(folder)
    contents = set()
    for num_workers in (1, 2, 3, None):
        count(folder, num_workers)
        (table,) = tables(folder)
        contents.add(table.read_bytes())
        table.unlink()
    assert len(contents) == 1


def test_lengths_are_those_of_the_prompt_and_damage_has_none(folder: Path) -> None:
    number, _ = spoil_codes(folder)
    index = open_index(folder)
    found = count(folder)
    for i in range(len(index)):
        if i != number:
            assert found[i] == len(toy_encoder(index.read(i, CODEBOOK_SIZE), False))
    assert np.flatnonzero(found == CORRUPT).tolist() == [number]


def test_a_repaired_sample_is_counted_again(folder: Path) -> None:
    number, old = spoil_codes(folder)
    assert count(folder)[number] == CORRUPT
    shard = sorted(folder.glob("*.tar"))[1]
    content = bytearray(shard.read_bytes())
    (start,) = [
        entry[1]
        for entry in member_ends(shard)
        if entry[0].endswith(".npy") and content[entry[1]] == 0
    ]
    content[start : start + 6] = old
    shard.write_bytes(content)
    index = open_index(folder)
    expected = len(toy_encoder(index.read(number, CODEBOOK_SIZE), False))
    assert count(folder)[number] == expected
    (table,) = tables(folder)
    assert np.load(table)[number] == expected
