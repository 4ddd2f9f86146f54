"""The mixture of plain folders: the tasks are its sources, their shares come from --task-ratio."""

from collections.abc import Mapping, Sequence

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.data.mixture import Mixture
from megatron_aia.data.phases import Phase
from megatron_aia.data.sample_pool import SamplePool
from megatron_aia.data.shuffle import build_shuffle
from megatron_aia.shards.index import ShardIndex

RATIO_ORDER = (Task.GENERATION, Task.UNDERSTANDING, Task.TEXT, Task.MIXED)
"""Tasks in the order of the numbers of ``--task-ratio``."""


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


def mix_by_task(
    indexes: Sequence[ShardIndex],
    ratio: Mapping[Task, int],
    seed: int,
    window_shards: int = 0,
) -> Mixture:
    """Return the mixture in which all samples of a task, over all folders, are one source.

    Args:
        indexes: of the folders, each with samples of any tasks.
        ratio: samples of each task in one period; 0, or no entry, where a task is left out.
        seed: chooses every order.
        window_shards: shards of a window to shuffle in; 0 shuffles over all.

    Raises:
        ValueError: a task with a ratio above 0 has no samples.
    """
    pools = [_pool(indexes, task, seed, window_shards) for task in RATIO_ORDER]
    weights = tuple(ratio.get(task, 0) for task in RATIO_ORDER)
    for pool, weight in zip(pools, weights, strict=True):
        if weight and not len(pool):
            raise ValueError(
                f"the task ratio {':'.join(map(str, weights))} asks for {pool.label} "
                "and --data-path has none; add a folder that has, or set its number to 0"
            )
    unused = "as --task-ratio gives them 0 (order: generation:understanding:text:mixed)"
    return Mixture(indexes, pools, [Phase(weights)], seed, unused, window_shards)


def _pool(indexes: Sequence[ShardIndex], task: Task, seed: int, window_shards: int) -> SamplePool:
    members = {i: np.flatnonzero(index.tasks == task) for i, index in enumerate(indexes)}
    return SamplePool(
        name=task.name.lower(),
        label=f"{task.name.lower()} samples",
        members=members,
        meaning=(task.name, [index.fingerprint for index in indexes]),
        shuffle=build_shuffle(indexes, members, window_shards, seed, stream=int(task)),
    )
