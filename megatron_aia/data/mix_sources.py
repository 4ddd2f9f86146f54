"""From the plan of a mixture to the mixture: folders are opened, and sources find their samples."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.data.mixture import Mixture
from megatron_aia.data.mixture_plan import MixturePlan, MixtureSource
from megatron_aia.data.permutation import Stream, hash_integers, splitmix64_array
from megatron_aia.data.sample_pool import SamplePool
from megatron_aia.data.shuffle import build_shuffle
from megatron_aia.shards.index import ShardIndex


def mix_sources(
    plan: MixturePlan,
    seed: int,
    open_folder: Callable[[str], ShardIndex],
    window_shards: int = 0,
) -> Mixture:
    """Return the mixture of a plan.

    Args:
        plan: sources and phases.
        seed: chooses every order. Which samples a limit keeps does not depend on it.
        open_folder: indexes a data folder.
        window_shards: shards of a window to shuffle in; 0 shuffles over all of a source.

    Raises:
        ValueError: a folder cannot be opened, or a source has no samples.
    """
    folders = _OpenFolders(open_folder)
    pools = []
    for place, source in enumerate(plan.sources):
        numbers = folders.numbers(source)
        pool = _build_pool(source, numbers, folders.indexes, seed, window_shards)
        is_used = any(phase.weights[place] for phase in plan.phases)
        if not len(pool) and (is_used or not source.by_task):
            raise ValueError(_no_samples(source))
        pools.append(pool)
    return Mixture(folders.indexes, pools, plan.phases, seed, plan.unused, window_shards)


class _OpenFolders:
    """The indexes of a mixture, opened as sources name their folders.

    Sources share the index of a folder. Inside one source, a folder that stands twice has two.
    """

    def __init__(self, open_folder: Callable[[str], ShardIndex]) -> None:
        self.indexes: list[ShardIndex] = []
        self._open_folder = open_folder
        self._numbers: dict[tuple[str, int], int] = {}

    def numbers(self, source: MixtureSource) -> list[int]:
        """Return the number of the index of each folder of ``source``."""
        seen: Counter[str] = Counter()
        numbers = []
        for folder in source.folders:
            key = folder, seen[folder]
            if key not in self._numbers:
                self._numbers[key] = len(self.indexes)
                self.indexes.append(self._open(source, folder))
            numbers.append(self._numbers[key])
            seen[folder] += 1
        return numbers

    def _open(self, source: MixtureSource, folder: str) -> ShardIndex:
        try:
            return self._open_folder(folder)
        except ValueError as error:
            place = "--data-path" if source.by_task else source.place
            raise ValueError(f"{place}: {error}") from error


def _no_samples(source: MixtureSource) -> str:
    if source.by_task:
        return (
            f"{source.place} asks for {source.samples} and --data-path has none; add a folder that "
            "has, or set its number to 0"
        )
    return (
        f"{source.place}: {' '.join(source.folders)} has no {source.samples}; take the source out, "
        "or name a folder that has some"
    )


def _build_pool(
    source: MixtureSource,
    numbers: Sequence[int],
    indexes: Sequence[ShardIndex],
    seed: int,
    window_shards: int,
) -> SamplePool:
    """Return the samples of a source; ``numbers`` are those of its folders' indexes."""
    members = {number: _of_task(indexes[number], source.task) for number in numbers}
    label = source.samples
    if not source.by_task:
        (number,), (folder,) = numbers, source.folders
        found = len(members[number])
        if source.limit is not None:
            members = {number: choose(members[number], source.limit)}
        of_all = f"of {found} " if len(members[number]) < found else ""
        label = f"{of_all}{source.samples} of {source.name} ({folder})"
    return SamplePool(
        name=source.name,
        label=label,
        members=members,
        meaning=source.meaning([indexes[number].fingerprint for number in numbers]),
        shuffle=build_shuffle(indexes, members, window_shards, seed, source.stream),
    )


def _of_task(index: ShardIndex, task: Task | None) -> np.ndarray:
    return np.arange(len(index)) if task is None else np.flatnonzero(index.tasks == task)


def choose(samples: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` of ``samples``, or all if there are not so many, in their order.

    The choice is a hash of the sample's number: spread over the folder, the same for every run,
    and a smaller count keeps a part of what a larger one keeps.
    """
    key = np.uint64(hash_integers(Stream.LIMIT))
    hashes = splitmix64_array(samples.astype(np.uint64) ^ key)
    return np.sort(samples[np.argsort(hashes, kind="stable")[:count]])
