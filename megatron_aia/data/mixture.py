"""From a position in the run to a sample: a pure function, so the position is the data state."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.data.index import ShardIndex
from megatron_aia.data.permutation import Permutation, hash_fraction

RATIO_ORDER = (Task.GENERATION, Task.UNDERSTANDING, Task.TEXT, Task.MIXED)
"""Tasks in the order of the numbers of ``--task-ratio``."""

# Keep the draws of slots and of dropped prompts apart from the samples' (those use task numbers).
_SLOT_STREAM = 101
_DROP_STREAM = 102


def parse_task_ratio(text: str) -> dict[Task, int]:
    """Read ``generation:understanding[:text[:mixed]]``, for example ``2:1``.

    Raises:
        ValueError: not two to four whole numbers, or all of them 0.
    """
    parts = text.split(":")
    if not 2 <= len(parts) <= len(RATIO_ORDER) or not all(
        part.isascii() and part.isdigit() for part in parts
    ):
        raise ValueError(
            f"--task-ratio {text!r} is not generation:understanding[:text[:mixed]] in whole "
            "numbers; write for example 1:1"
        )
    ratio = dict(zip(RATIO_ORDER, map(int, parts), strict=False))
    if not any(ratio.values()):
        raise ValueError(f"--task-ratio {text!r} asks for no samples at all; write for example 1:1")
    return ratio


@dataclass(frozen=True)
class SampleAddress:
    """The sample at a position of the run."""

    task: Task
    index_number: int
    """Which of ``Mixture.indexes``."""
    sample_number: int
    """Number of the sample in that index."""
    epoch: int
    """How often every sample of the task was seen before."""


class Mixture:
    """An endless sequence of samples in which every task has its exact share.

    Every period of ``sum(ratio)`` positions holds each task ``ratio[task]`` times, in a shuffled
    order of its own (a fixed order could give one data-parallel rank only one task). The samples
    of a task, over all its folders, come once each in an epoch, shuffled anew in the next.

    Args:
        sources_by_task: the indexes in which to find the samples of a task. An index may serve
            several tasks.
        ratio: samples of each task in one period; 0 where a task is absent.
        seed: chooses every order.

    Raises:
        ValueError: a task with a ratio above 0 has no samples, or every ratio is 0.
    """

    def __init__(
        self,
        sources_by_task: Mapping[Task, Sequence[ShardIndex]],
        ratio: Mapping[Task, int],
        seed: int,
    ) -> None:
        self.ratio = {task: ratio.get(task, 0) for task in RATIO_ORDER}
        self.seed = seed
        self.period = sum(self.ratio.values())
        if self.period <= 0 or min(self.ratio.values()) < 0:
            raise ValueError(f"the task ratio {self._ratio_text()} is not a mixture; try 1:1")
        distinct = {id(index): index for sources in sources_by_task.values() for index in sources}
        self.indexes: tuple[ShardIndex, ...] = tuple(distinct.values())
        numbers = {identity: number for number, identity in enumerate(distinct)}
        self._pools = {
            task: _TaskPool(task, {numbers[id(i)]: i for i in sources_by_task.get(task, ())}, seed)
            for task in RATIO_ORDER
        }
        self._slots = [task for task, count in self.ratio.items() for _ in range(count)]
        self._slot_ranks = [rank for count in self.ratio.values() for rank in range(count)]
        for task, count in self.ratio.items():
            if count and not self.num_samples(task):
                raise ValueError(
                    f"the task ratio {self._ratio_text()} asks for {task.name.lower()} samples "
                    "and --data-path has none; add a folder that has, or set its number to 0"
                )

    def num_samples(self, task: Task) -> int:
        """Return how many samples of a task there are: the length of its epoch."""
        return len(self._pools[task])

    def locate(self, position: int) -> SampleAddress:
        """Return the sample at ``position`` (0 is the first of the run)."""
        assert position >= 0
        period_number, offset = divmod(position, self.period)
        slot = Permutation(self.period, self.seed, _SLOT_STREAM, period_number)(offset)
        task = self._slots[slot]
        draw = period_number * self.ratio[task] + self._slot_ranks[slot]
        return self._pools[task].locate(draw)

    def peers(self, address: SampleAddress) -> np.ndarray:
        """Return the numbers of the samples that share folder and task with ``address``.

        Ascending, the sample itself among them.
        """
        return self._pools[address.task].members[address.index_number]

    def drops_prompt(self, position: int, share: float) -> bool:
        """Tell whether the sample at ``position`` loses its prompt.

        Args:
            position: place in the run.
            share: of generation samples, from 0 to 1. Other samples never lose theirs.
        """
        drawn = hash_fraction(self.seed, _DROP_STREAM, position) < share
        return drawn and self.locate(position).task is Task.GENERATION

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides which sample stands at a position."""
        meaning = [self.seed] + [
            (task.name, count, [self.indexes[i].fingerprint for i in self._pools[task].members])
            for task, count in self.ratio.items()
            if count
        ]
        return hashlib.sha256(repr(meaning).encode()).hexdigest()[:16]

    def samples_in_use(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number of an index, numbers of its samples) for every task the ratio asks for."""
        for task, count in self.ratio.items():
            if count:
                yield from self._pools[task].members.items()

    def describe(self) -> list[str]:
        """Return lines for the log: samples by task, the mixture, what is left out."""
        lines = []
        for task, count in self.ratio.items():
            name, total = task.name.lower(), self.num_samples(task)
            if count:
                share = count / self.period
                epoch = total / count * self.period
                lines.append(
                    f"{total} {name} samples, {count} in every {self.period} positions "
                    f"({share:.1%}), all seen after {epoch:.0f} positions"
                )
            elif total:
                lines.append(
                    f"warning: {total} {name} samples are left out, as --task-ratio gives them 0 "
                    "(order: generation:understanding:text:mixed)"
                )
        return lines

    def _ratio_text(self) -> str:
        return ":".join(map(str, self.ratio.values()))


class _TaskPool:
    """All samples of one task, over several indexes, in a new order every epoch."""

    def __init__(self, task: Task, indexes: Mapping[int, ShardIndex], seed: int) -> None:
        self.task = task
        self.members = {
            number: np.flatnonzero(index.tasks == task) for number, index in indexes.items()
        }
        self._index_numbers = list(self.members)
        sizes = [len(samples) for samples in self.members.values()]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self._size = sum(sizes)
        self._seed = seed

    def __len__(self) -> int:
        return self._size

    def locate(self, draw: int) -> SampleAddress:
        """Return the sample of the ``draw``-th time this task is asked for."""
        epoch, place = divmod(draw, self._size)
        number = _shuffled(self._size, self._seed, int(self.task), epoch)(place)
        # Of several pools that begin at the same number all but the last are empty.
        source = bisect_right(self._starts, number) - 1
        index_number = self._index_numbers[source]
        sample_number = int(self.members[index_number][number - self._starts[source]])
        return SampleAddress(self.task, index_number, sample_number, epoch)


# Neighbouring positions share an epoch, or two where one ends, of a few tasks.
@lru_cache(maxsize=4 * len(RATIO_ORDER))
def _shuffled(size: int, seed: int, source: int, epoch: int) -> Permutation:
    return Permutation(size, seed, source, epoch)
