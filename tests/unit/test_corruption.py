"""Whatever happens to a shard is found, and no sample ever reads as another one."""

import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.corruption import DAMAGES, Damage, unpack, write_sealed_shards
from support.tiny_data import CODEBOOK_SIZE

from megatron_aia.shards.index import ShardIndex, open_index
from megatron_aia.shards.raw_sample import CorruptSampleError
from megatron_aia.shards.verify import VerifyOptions, verify_folder

pytest.importorskip("PIL.Image")

REPOSITORY = Path(__file__).parents[2]
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
        except CorruptSampleError as error:
            assert len(str(error).splitlines()) == 1 and sample_name(index, number) in str(error)
            continue
        pixels = tuple((image.shape, image.tobytes()) for image in images)
        readings[sample.key] = (sample.task, sample.turns, pixels)
    return readings


def sample_name(index: ShardIndex, number: int) -> str:
    return f"sample {index.key(number).partition('/')[2]}"


def changed_by(damage: Damage, case: int, contents: bytes) -> bytes:
    """Return damaged contents; a draw that changes nothing, as zeros for zeros, is none."""
    rng = np.random.default_rng([case, len(damage.__name__)])
    while (damaged := damage(rng, contents)) == contents:
        pass
    return damaged


@dataclass(frozen=True)
class Outcome:
    """What became of a damaged shard."""

    is_visible: bool
    """Python's own reader of tar files finds other members, or other bytes in them."""
    is_found: bool
    """``verify_folder`` tells it."""
    refusal: str
    """What the index pass says instead of indexing the folder."""
    readings: dict[str, Reading]


class Outcomes:
    """The outcomes of every damage, each tried once."""

    def __init__(self, folder: Path, caches: Path) -> None:
        self._folder, self._caches = folder, caches
        self._shard = sorted(folder.glob("*.tar"))[1]
        self._found: dict[str, list[Outcome]] = {}

    def of(self, damage: Damage) -> list[Outcome]:
        name, contents = damage.__name__, self._shard.read_bytes()
        if name not in self._found:
            try:
                self._found[name] = [self._try(damage, n, contents) for n in range(CASES_OF_EACH)]
            finally:
                self._shard.write_bytes(contents)
        return self._found[name]

    def _try(self, damage: Damage, case: int, contents: bytes) -> Outcome:
        damaged = changed_by(damage, case, contents)
        self._shard.write_bytes(damaged)
        options = VerifyOptions(folders=(str(self._folder),), decode=True, num_workers=0)
        found = bool(verify_folder(str(self._folder), options).problems)
        cache = self._caches / f"{damage.__name__}-{case}"
        try:
            refusal, readings = "", read_all(open_index(self._folder, cache))
        except ValueError as error:
            refusal, readings = str(error), {}
        return Outcome(is_visible(damaged, contents), found, refusal, readings)


def is_visible(damaged: bytes, contents: bytes) -> bool:
    try:
        return sorted(unpack(damaged)) != sorted(unpack(contents))
    except tarfile.TarError:
        return True


@pytest.fixture(scope="module")
def outcomes(folder: Path, whole: object, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return Outcomes(folder, tmp_path_factory.mktemp("caches"))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_is_found(
    folder: Path, whole: dict[str, Reading], outcomes: Outcomes, damage: Damage
) -> None:
    for outcome in outcomes.of(damage):
        assert outcome.is_found or not outcome.is_visible
        if outcome.refusal:
            assert outcome.refusal.startswith(str(folder))
            assert len(outcome.refusal.splitlines()) == 1
            assert outcome.is_found, "what the index pass refuses, verify finds"
        assert outcome.readings.items() <= whole.items(), "a sample reads as another one"
        # Bytes between the members mean nothing, nor does the order of samples.
        changes_nothing = damage.__name__ in MAY_CHANGE_NOTHING and outcome.readings == whole
        assert outcome.is_found or changes_nothing


MAY_CHANGE_NOTHING = {"flip_any_bit", "swap_members"}


def test_the_documents_count_the_damages_that_are_found(outcomes: Outcomes) -> None:
    found = sum(outcome.is_found for damage in DAMAGES for outcome in outcomes.of(damage))
    documents = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in documents)
    said = re.findall(r"(\d+) damages|damages shards in\s(\d+)\sways", text)
    assert {int(number) for pair in said for number in pair if number} == {found}
