"""Shuffling by arithmetic: any place of a shuffled order, without storing the order.

Integer arithmetic only. A resumed run must find the very order it left, so nothing here may depend
on a random generator whose stream another release of a library could change.
"""

from enum import IntEnum

import numpy as np

_MASK_64 = (1 << 64) - 1
_ROUNDS = 6


class Stream(IntEnum):
    """Keeps the draws of a run apart: one number of what is hashed says what is drawn.

    The orders of samples have the numbers of their tasks, which are smaller, or hashes of their
    sources' names. A number that changes is another order of data for every run that goes on.
    """

    SLOT = 101
    """Order of the sources in a period: ``Permutation(size, seed, SLOT, period)``."""
    DROPPED_PROMPT = 102
    """``hash_integers(seed, DROPPED_PROMPT, position)``."""
    WINDOW = 104
    """Order inside a window: ``hash_integers(WINDOW, order of the source, window)``."""
    REPLACEMENT = 104
    """``hash_integers(seed, REPLACEMENT, position, attempt)``. The number is that of ``WINDOW``,
    and still no draw is another: that hash is of three numbers, this one of four, of which the
    number is the second."""
    LIMIT = 105
    """Samples that a limit keeps: ``hash_integers(LIMIT)``."""


def splitmix64(value: int) -> int:
    """Mix the bits of a 64-bit integer (the output function of the SplitMix64 generator)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


def splitmix64_array(values: np.ndarray) -> np.ndarray:
    """Return ``splitmix64`` of every element of a uint64 array."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_integers(*values: int) -> int:
    """Return a 64-bit hash of a sequence of integers, the same on every machine."""
    state = 0
    for value in values:
        state = splitmix64(state ^ (value & _MASK_64))
    return state


def hash_fraction(*values: int) -> float:
    """Return a hash of a sequence of integers as a number in [0, 1)."""
    return (hash_integers(*values) >> 11) / (1 << 53)


class Permutation:
    """A shuffled order of ``range(size)`` in O(1) memory, chosen by (seed, source, epoch).

    A Feistel network permutes the integers below the power of four at or above ``size``; a value
    that leaves ``range(size)`` goes through the network again until it is back (cycle walking).
    Both steps are bijections, so every number appears exactly once.
    """

    def __init__(self, size: int, seed: int, source: int, epoch: int) -> None:
        assert size > 0
        self.size = size
        self._half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half_mask = (1 << self._half_bits) - 1
        key = hash_integers(seed, source, epoch)
        self._round_keys = tuple(splitmix64(key + i) for i in range(_ROUNDS))

    def __len__(self) -> int:
        return self.size

    def __call__(self, place: int) -> int:
        """Return the number at ``place`` of the shuffled order; both in ``range(size)``."""
        assert 0 <= place < self.size
        value = self._encipher(place)
        while value >= self.size:
            value = self._encipher(value)
        return value

    def take(self, places: np.ndarray) -> np.ndarray:
        """Return the numbers at ``places``, an array of integers in ``range(size)``: int64."""
        values = self._encipher_array(places.astype(np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._encipher_array(values[outside])
        return values.astype(np.int64)

    def _encipher(self, value: int) -> int:
        left, right = value >> self._half_bits, value & self._half_mask
        for key in self._round_keys:
            left, right = right, left ^ (splitmix64(right ^ key) & self._half_mask)
        return (left << self._half_bits) | right

    def _encipher_array(self, values: np.ndarray) -> np.ndarray:
        bits, mask = np.uint64(self._half_bits), np.uint64(self._half_mask)
        left, right = values >> bits, values & mask
        for key in self._round_keys:
            left, right = right, left ^ (splitmix64_array(right ^ np.uint64(key)) & mask)
        return (left << bits) | right
