"""What is read in the place of a sample whose content is damaged.

A run of weeks must not end with one bad picture, and must not depend on when, or by which rank, it
was found. So a replacement is a pure function of the seed, the position and of which samples of its
source are damaged: the same in every layout, and again after a resume.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from megatron_aia.data.mixture import Mixture, SampleAddress
from megatron_aia.data.permutation import Stream, hash_integers

_MAX_ATTEMPTS = 1000

_T = TypeVar("_T")


@dataclass(frozen=True, order=True)
class CorruptSample:
    """A sample whose content cannot be used."""

    index_number: int
    """Which of ``Mixture.indexes``."""
    sample_number: int
    reason: str
    """One line that names shard and sample."""


class CorruptSamplesFound(Exception):
    """Samples of a step turned out to be damaged; with these known, the step is another one."""

    def __init__(self, samples: tuple[CorruptSample, ...]) -> None:
        super().__init__(samples)
        self.samples = samples

    def __str__(self) -> str:
        return "; ".join(sample.reason for sample in self.samples)


class UnreadableStep(ValueError):
    """A step cannot be read on some rank; all ranks raise this together."""


def collect(makers: Iterable[Callable[[], _T]]) -> list[_T]:
    """Call all ``makers``, so that the corrupt samples of all of them are found at once.

    Raises:
        CorruptSamplesFound: of all that were found.
    """
    results: list[_T] = []
    corrupt: list[CorruptSample] = []
    for make in makers:
        try:
            results.append(make())
        except CorruptSamplesFound as found:
            corrupt += found.samples
    if corrupt:
        raise CorruptSamplesFound(tuple(corrupt))
    return results


def locate_usable(
    mixture: Mixture, position: int, is_corrupt: Callable[[SampleAddress], bool]
) -> SampleAddress:
    """Return the sample at ``position``, or the one that stands in for it.

    Replacements are of the same source, folder and task, so a mixture keeps its shares.

    Args:
        mixture: the samples of the run.
        position: place in the run.
        is_corrupt: tells the samples that cannot be used.

    Raises:
        ValueError: no usable sample of this folder and task was found.
    """
    address = wanted = mixture.locate(position)
    for attempt in range(_MAX_ATTEMPTS):
        if not is_corrupt(address):
            return address
        peers = mixture.peers(wanted)
        drawn = hash_integers(mixture.seed, Stream.REPLACEMENT, position, attempt) % len(peers)
        address = replace(wanted, sample_number=int(peers[drawn]))
    index = mixture.indexes[wanted.index_number]
    raise ValueError(
        f"{index.folder}: {_MAX_ATTEMPTS} {wanted.task.name.lower()} samples were drawn to stand "
        f"in for {index.key(wanted.sample_number)}, and all are damaged; rebuild the shards"
    )
