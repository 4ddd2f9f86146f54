"""From a position in the run to a sample: a pure function, so the position is the data state."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.data.permutation import Stream, hash_fraction
from megatron_aia.data.phases import Phase, Schedule
from megatron_aia.data.sample_pool import SamplePool
from megatron_aia.shards.index import ShardIndex


@dataclass(frozen=True)
class SampleAddress:
    """The sample at a position of the run."""

    task: Task
    index_number: int
    """Which of ``Mixture.indexes``."""
    sample_number: int
    """Number of the sample in that index."""
    epoch: int
    """How often every sample of its source was seen before."""
    source: int
    """Which of ``Mixture.pools``."""


class Mixture:
    """An endless sequence of samples in which every source has its exact share.

    Every period of ``sum(weights)`` positions of a phase holds each source as often as its weight
    says. The samples of a source come once each in an epoch, shuffled anew in the next; phases do
    not interrupt an epoch.

    Args:
        indexes: of all data folders.
        pools: one a source, with samples of ``indexes``.
        phases: in order, their weights in the order of ``pools``; a weight above 0 needs samples.
        seed: chooses the order of sources and the dropped prompts.
        unused: why a source without a weight is left out, for the log.
        window_shards: shards of a window in which ``pools`` are shuffled, 0 if over all their
            samples; for the log and the fingerprint.
    """

    def __init__(
        self,
        indexes: Sequence[ShardIndex],
        pools: Sequence[SamplePool],
        phases: Sequence[Phase],
        seed: int,
        unused: str,
        window_shards: int = 0,
    ) -> None:
        self.indexes = tuple(indexes)
        self.pools = tuple(pools)
        self.phases = tuple(phases)
        self.seed = seed
        self._unused = unused
        self._window_shards = window_shards
        self._schedule = Schedule(phases, seed)
        self._used = [any(p.weights[i] for p in self.phases) for i in range(len(self.pools))]

    @property
    def num_samples(self) -> int | None:
        """Length of all phases in positions; None if the last has no end."""
        lengths = [phase.num_samples for phase in self.phases]
        return None if lengths[-1] is None else sum(length or 0 for length in lengths)

    def check_length(self, num_positions: int) -> None:
        """Check that the phases are as long as the run.

        Raises:
            ValueError: they end before position ``num_positions``.
        """
        if self.num_samples is not None and self.num_samples < num_positions:
            raise ValueError(
                f"the phases of the mixture end after {self.num_samples} samples, and the run "
                f"draws {num_positions}; leave out the samples of the last phase, or lower "
                "--train-iters"
            )

    def locate(self, position: int) -> SampleAddress:
        """Return the sample at ``position`` (0 is the first of the run)."""
        assert position >= 0
        source, draw = self._schedule.locate(position)
        index_number, sample_number, epoch = self.pools[source].locate(draw)
        task = Task(self.indexes[index_number].tasks[sample_number])
        return SampleAddress(task, index_number, sample_number, epoch, source)

    def peers(self, address: SampleAddress) -> np.ndarray:
        """Return the numbers of the samples that share source, folder and task with ``address``.

        Ascending, the sample itself among them.
        """
        members = self.pools[address.source].members[address.index_number]
        return members[self.indexes[address.index_number].tasks[members] == address.task]

    def drops_prompt(self, position: int, share: float) -> bool:
        """Tell whether the sample at ``position`` loses its prompt.

        Args:
            position: place in the run.
            share: of generation samples, from 0 to 1. Other samples never lose theirs.
        """
        drawn = hash_fraction(self.seed, Stream.DROPPED_PROMPT, position) < share
        return drawn and self.locate(position).task is Task.GENERATION

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides which sample stands at a position."""
        used = [i for i, is_used in enumerate(self._used) if is_used]
        first, *rest = self.phases
        meaning: list[object] = [self.seed]
        for i in used:
            order, samples = self.pools[i].meaning
            meaning.append((order, first.weights[i], samples))
        if rest or first.num_samples is not None:
            # The last phase goes on beyond its length, where another period may begin.
            meaning.append([(p.num_samples, [p.weights[i] for i in used]) for p in self.phases])
        if self._window_shards:
            meaning.append(f"windows of {self._window_shards} shards")
        return hashlib.sha256(repr(meaning).encode()).hexdigest()[:16]

    def samples_in_use(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number of an index, ascending numbers of its samples in any phase)."""
        for number in range(len(self.indexes)):
            parts = [
                pool.members[number]
                for pool, is_used in zip(self.pools, self._used, strict=True)
                if is_used and number in pool.members
            ]
            if parts:
                yield number, np.unique(np.concatenate(parts))

    def describe(self) -> list[str]:
        """Return lines for the log: samples by source, the mixture, what is left out."""
        lines = []
        for number, pool in enumerate(self.pools):
            weight, period = self.phases[0].weights[number], self.phases[0].period
            if not self._used[number]:
                if len(pool):
                    lines.append(f"warning: {len(pool)} {pool.label} are left out, {self._unused}")
            elif len(self.phases) > 1:
                lines.append(f"{len(pool)} {pool.label}")
            else:
                epoch = len(pool) / weight * period
                lines.append(
                    f"{len(pool)} {pool.label}, {weight} in every {period} positions "
                    f"({weight / period:.1%}), all seen after {epoch:.0f} positions"
                )
        if len(self.phases) > 1:
            lines += self._describe_phases()
        if self._window_shards:
            lines.append(f"shuffled in windows of {self._window_shards} shards of a source")
        return lines

    def describe_drawn(self, position: int) -> str:
        """Return what was drawn before ``position``, by source, as text for the log."""
        draws = self._schedule.draws_before(position)
        parts = [
            f"{count} {pool.name} ({count / max(position, 1):.1%}, {count / len(pool):.2f} epochs)"
            for count, pool, is_used in zip(draws, self.pools, self._used, strict=True)
            if is_used
        ]
        return f"{position} samples so far: " + ", ".join(parts)

    def _describe_phases(self) -> list[str]:
        lines, start = [], 0
        for number, phase in enumerate(self.phases, start=1):
            end = "on" if phase.num_samples is None else f"to {start + phase.num_samples - 1}"
            shares = ", ".join(
                f"{weight} {pool.name}"
                for weight, pool in zip(phase.weights, self.pools, strict=True)
                if weight
            )
            lines.append(
                f"phase {number}, from position {start} {end}: {shares} in every {phase.period}"
            )
            start += phase.num_samples or 0
        return lines
