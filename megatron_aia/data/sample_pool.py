"""The samples of one source of a mixture, once each in an epoch."""

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

import numpy as np

from megatron_aia.data.shuffle import Shuffle


class SamplePool:
    """Samples of one or several indexes, in a new order every epoch.

    Args:
        name: of the source, for the log.
        label: what the samples are, for the log, as "generation samples".
        members: number of an index -> numbers of its samples, ascending.
        meaning: name of the order and hashes of the samples, for the fingerprint of the data.
        shuffle: order of the samples in each epoch, counted over ``members``.
    """

    def __init__(
        self,
        name: str,
        label: str,
        members: Mapping[int, np.ndarray],
        meaning: tuple[str, list[str]],
        shuffle: Shuffle,
    ) -> None:
        self.name, self.label, self.meaning = name, label, meaning
        self.members = dict(members)
        self._index_numbers = list(self.members)
        sizes = [len(samples) for samples in self.members.values()]
        self._starts = [0, *accumulate(sizes)][: len(sizes)]
        self._size = sum(sizes)
        self._shuffle = shuffle

    def __len__(self) -> int:
        return self._size

    def locate(self, draw: int) -> tuple[int, int, int]:
        """Return (number of an index, number of the sample there, epoch) of a draw from 0 on."""
        epoch, place = divmod(draw, self._size)
        number = self._shuffle(epoch, place)
        # Of several members that begin at the same number all but the last are empty.
        member = bisect_right(self._starts, number) - 1
        index_number = self._index_numbers[member]
        sample_number = self.members[index_number][number - self._starts[member]]
        return index_number, int(sample_number), epoch
