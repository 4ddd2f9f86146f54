"""What a run draws from, before any folder was opened: whoever says it, one plan."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_aia.aia.roles import Task
from megatron_aia.config.data_sources import task_weights
from megatron_aia.data.phases import Phase

RATIO_ORDER = (Task.GENERATION, Task.UNDERSTANDING, Task.TEXT, Task.MIXED)
"""Tasks in the order of the numbers of ``--task-ratio``."""


@dataclass(frozen=True)
class MixtureSource:
    """What a mixture draws from."""

    name: str
    """Decides the order of its samples, together with the seed; see ``by_task``."""
    folders: tuple[str, ...]
    """Data folders; one that stands twice gives its samples twice."""
    task: Task | None = None
    """Only samples of this task; None takes all."""
    limit: int | None = None
    """At most this many samples, of a source with one folder; None takes all."""
    place: str = ""
    """Where it was named, for errors."""
    by_task: bool = False
    """It is a number of ``--task-ratio``: its task decides the order, and it may be empty where it
    has no weight."""

    @property
    def samples(self) -> str:
        """What it holds, as "generation samples"."""
        return "samples" if self.task is None else f"{self.task.name.lower()} samples"

    @property
    def stream(self) -> int:
        """The number of its order; see ``Stream``."""
        if self.by_task and self.task is not None:
            return int(self.task)
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")

    def meaning(self, fingerprints: Sequence[str]) -> tuple[str, list[str]]:
        """Return the name of the order and what decides the samples, for the fingerprint."""
        if self.by_task and self.task is not None:
            return self.task.name, [*fingerprints]
        task = [] if self.task is None else [self.task.name]
        limit = [] if self.limit is None else [f"limit {self.limit}"]
        return self.name, [*fingerprints, *task, *limit]


@dataclass(frozen=True)
class MixturePlan:
    """Sources and phases."""

    sources: tuple[MixtureSource, ...]
    phases: tuple[Phase, ...]
    """Their weights stand in the order of ``sources``."""
    unused: str = "as no phase gives them a weight"
    """Why a source without a weight is left out, for the log."""

    @property
    def folders(self) -> tuple[str, ...]:
        """All data folders, in order, each once."""
        return tuple(dict.fromkeys(f for source in self.sources for f in source.folders))


def plan_blend(pairs: Sequence[tuple[int, str]]) -> MixturePlan:
    """Return the plan of weights and folders, whatever tasks the folders hold."""
    # A folder's number, not its path, decides its order: it may be moved.
    sources = [
        MixtureSource(str(number), (folder,), place="--data-path")
        for number, (_, folder) in enumerate(pairs, start=1)
    ]
    return MixturePlan(tuple(sources), (Phase(tuple(weight for weight, _ in pairs)),))


def plan_tasks(folders: Sequence[str], ratio: str) -> MixturePlan:
    """Return the plan in which all samples of a task, over all folders, are one source.

    Raises:
        ValueError: ``ratio`` is none.
    """
    place = f"--task-ratio {ratio}"
    sources = [
        MixtureSource(task.name.lower(), tuple(folders), task, place=place, by_task=True)
        for task in RATIO_ORDER
    ]
    unused = "as --task-ratio gives them 0 (order: generation:understanding:text:mixed)"
    return MixturePlan(tuple(sources), (Phase(task_weights(ratio)),), unused)
