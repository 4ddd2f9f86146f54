"""An index without shards behind it: enough for everything that decides the order of a run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.shards.index import ShardIndex
from megatron_aia.shards.table import SampleTable


def fake_index(name: str, tasks: Sequence[Task], samples_per_shard: int = 10) -> ShardIndex:
    """Return an index of ``len(tasks)`` samples, in shards of ``samples_per_shard``."""
    count = len(tasks)
    table = SampleTable(
        tasks=np.array(tasks, np.uint8),
        shard_numbers=(np.arange(count) // samples_per_shard).astype(np.int32),
        member_starts=np.arange(count + 1),
        member_offsets=np.zeros(count, np.int64),
        member_sizes=np.zeros(count, np.int64),
        member_is_picture=np.zeros(count, np.bool_),
        key_starts=np.zeros(count + 1, np.int64),
        keys=np.zeros(0, np.uint8),
    )
    return ShardIndex(name, (), table, fingerprint=name, cache=Path(name))
