"""Whatever happens to a shard is found, and no sample ever reads as another one."""

from pathlib import Path

import numpy as np
import pytest
from support.corruption import DAMAGES, Damage, write_sealed_shards
from support.tiny_data import CODEBOOK_SIZE

from megatron_aia.shards.index import ShardIndex, open_index
from megatron_aia.shards.raw_sample import DamagedSample
from megatron_aia.shards.verify import VerifyOptions, verify_folder

pytest.importorskip("PIL.Image")

CASES_OF_EACH = 14
Reading = tuple[object, ...]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sealed_shards(tmp_path_factory.mktemp("corruption") / "data")


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Reading]:
    options = VerifyOptions(folders=(str(folder),), decode=True, num_workers=0)
    assert not verify_folder(str(folder), options).problems
    return read_all(open_index(folder, folder.parent / "cache"))


def read_all(index: ShardIndex) -> dict[str, Reading]:
    """Return all that a model could see of every sample that can be read, by key."""
    readings: dict[str, Reading] = {}
    for number in range(len(index)):
        try:
            sample = index.read(number, CODEBOOK_SIZE)
            images = [i if isinstance(i, np.ndarray) else i.decode() for i in sample.images]
        except DamagedSample as error:
            assert len(str(error).splitlines()) == 1 and sample_name(index, number) in str(error)
            continue
        pixels = tuple((image.shape, image.tobytes()) for image in images)
        readings[sample.key] = (sample.task, sample.turns, pixels)
    return readings


def sample_name(index: ShardIndex, number: int) -> str:
    return f"sample {index.key(number).partition('/')[2]}"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_is_found(
    folder: Path, whole: dict[str, Reading], tmp_path: Path, damage: Damage
) -> None:
    shard = sorted(folder.glob("*.tar"))[1]
    contents = shard.read_bytes()
    options = VerifyOptions(folders=(str(folder),), decode=True, num_workers=0)
    harmless = 0
    try:
        for case in range(CASES_OF_EACH):
            damaged = damage(np.random.default_rng([case, len(damage.__name__)]), contents)
            shard.write_bytes(damaged)
            problems = verify_folder(str(folder), options).problems
            try:
                readings = read_all(open_index(folder, tmp_path / str(case)))
            except ValueError as error:
                assert str(error).startswith(str(folder)) and len(str(error).splitlines()) == 1
                assert problems, "what the index pass refuses, verify finds"
                continue
            assert readings.items() <= whole.items(), "a sample reads as another one"
            # Some bytes mean nothing: padding, or an edit that this file has no place for.
            if readings == whole and not problems:
                harmless += 1
            else:
                assert problems, "what does not read as before, verify finds"
    finally:
        shard.write_bytes(contents)
    assert harmless <= (CASES_OF_EACH // 2 if damage.__name__ in MAY_MISS else 0)


MAY_MISS = {
    *("flip_any_bit", "flip_bit_of_header", "zero_block", "zero_range", "noise_block"),
    *("swap_members", "edit_json", "lose_bytes"),
}
"""Damages that may fall on padding, on zeros, or change the order alone."""


def test_there_are_hundreds() -> None:
    assert CASES_OF_EACH * len(DAMAGES) >= 250
