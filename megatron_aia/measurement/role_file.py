"""Samples that somebody has tokenised: ids, and which of them are queries and keys.

A line of JSON each::

    {"sample": "a", "task": "generation", "input_ids": [1, 7, 7, 9, 9],
     "queries": [[3, 5]], "keys": [[0, 3]]}

Queries and keys are ranges ``[start, stop)`` of positions, or ``"image"``: all tokens of
``--image-token-ids``. So a causal model without a processor can be measured.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_aia.aia.roles import AIA_TASK_OF_NAME, AIATerm
from megatron_aia.measurement.samples import InactiveSampleError
from megatron_aia.shards.raw_sample import RawSample

_FIELDS = {"sample", "task", "input_ids", "queries", "keys"}


def is_role_file(path: Path) -> bool:
    """Return whether the first line of a file is a sample with ids."""
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and "input_ids" in first


class RoleFile:
    """The samples of such a file, by number.

    Args:
        path: of the file.
        image_ids: of ``--image-token-ids``.

    Raises:
        ValueError: a line is wrong; naming it.
    """

    def __init__(self, path: Path, image_ids: Sequence[int]) -> None:
        self.folder = str(path)
        self._image_ids = list(image_ids)
        self._samples: list[dict[str, Any]] = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                self._samples.append(_check(json.loads(line), bool(image_ids)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
        tasks = [AIA_TASK_OF_NAME[sample["task"]] for sample in self._samples]
        self.tasks = np.array(tasks, np.uint8)
        """uint8 ``[samples]``, values of ``Task``."""

    def key(self, number: int) -> str:
        """Return a sample's name."""
        return str(self._samples[number]["sample"])

    def read(self, number: int, codebook_size: int) -> RawSample:
        """Raise: its samples are ids of one model, and no words.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.folder} holds ids, which only --hf-path reads")

    def ids(self, number: int) -> np.ndarray:
        """Return the ids of a sample, int64 ``[n]``."""
        return np.array(self._samples[number]["input_ids"], np.int64)

    def term(self, number: int) -> AIATerm:
        """Return what is measured of a sample.

        Raises:
            InactiveSampleError: it has no query, no key, or no query after a key.
        """
        sample = self._samples[number]
        queries, keys = (self._positions(number, sample[name]) for name in ("queries", "keys"))
        if not len(queries):
            raise InactiveSampleError("no query")
        if not len(keys):
            raise InactiveSampleError("no key")
        if keys[0] > queries[-1]:
            raise InactiveSampleError("no query after a key")
        return AIATerm(AIA_TASK_OF_NAME[sample["task"]], queries, keys)

    def _positions(self, number: int, where: str | list[list[int]]) -> np.ndarray:
        if isinstance(where, str):
            return np.flatnonzero(np.isin(self.ids(number), self._image_ids))
        found = [np.arange(start, stop) for start, stop in where]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))


def _check(sample: Any, has_image_ids: bool) -> dict[str, Any]:
    """Return a line's object; see the module for its form."""
    if not isinstance(sample, dict) or set(sample) != _FIELDS:
        given = ", ".join(sample) if isinstance(sample, dict) else type(sample).__name__
        raise ValueError(f"has {given or 'no fields'}; give {', '.join(sorted(_FIELDS))}")
    if sample["task"] not in AIA_TASK_OF_NAME:
        raise ValueError(f"task is {sample['task']!r}; use {' or '.join(AIA_TASK_OF_NAME)}")
    ids = sample["input_ids"]
    if not isinstance(ids, list) or not ids or not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError("input_ids must be a list of ids, 0 or more")
    for name in ("queries", "keys"):
        where = sample[name]
        if where == "image":
            if not has_image_ids:
                raise ValueError(f'{name} are "image"; say which ids by --image-token-ids')
        elif not isinstance(where, list) or not all(_is_range(part, len(ids)) for part in where):
            raise ValueError(
                f'{name} is {where!r}; give ranges [start, stop] in 0 to {len(ids)}, or "image"'
            )
    return sample


def _is_range(part: Any, length: int) -> bool:
    if not isinstance(part, list) or len(part) != 2 or not all(type(x) is int for x in part):
        return False
    return bool(0 <= part[0] < part[1] <= length)
