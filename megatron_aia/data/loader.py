"""The micro-batches of a step, from the position of its first sample.

A step is ``global_batch_size`` consecutive positions. Packing, micro-batch size and data-parallel
size only lay these samples out, so they may all change when a run goes on from a checkpoint.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from megatron_aia.data.batch import MicroBatch, build_micro_batch
from megatron_aia.data.mixture_plan import RATIO_ORDER
from megatron_aia.data.packing import (
    PackedSequence,
    deal_equal_lengths,
    deal_sequences,
    plan_sequences,
    sequence_length,
)
from megatron_aia.data.replacements import collect
from megatron_aia.data.sample_reader import SampleReader

_DESCRIBED_STEPS = 4


class MicroBatchPlan(NamedTuple):
    """What a micro-batch is built of."""

    sequences: list[PackedSequence]
    """Samples of each sequence, as offsets from the first position of the step; a sequence may be
    empty."""
    sequence_length: int
    """Tokens of each sequence. All ranks that share the micro-batch agree."""
    lane: int = 0
    """Of all of its samples."""


class _StepPlan(NamedTuple):
    """The sequences of a step on all ranks."""

    lengths: list[int]
    """Tokens to keep free for each sample, counted from the first position of the step."""
    lanes: dict[int, list[PackedSequence]]
    """The sequences of each lane; every one fills whole micro-batches of all ranks."""


@dataclass(frozen=True, kw_only=True)
class StepLoader(SampleReader):
    """The samples of every step, as the micro-batches of one data-parallel rank."""

    global_batch_size: int
    """Samples of a step, over all ranks."""
    micro_batch_size: int
    """Sequences of a micro-batch."""
    data_parallel_rank: int
    data_parallel_size: int
    packing: bool
    """Put several samples into a sequence."""
    micro_batch_multiple: int
    """The number of micro-batches of a rank is a multiple of this."""
    length_multiple: int = 0
    """Sequences are as long as the longest of their micro-batch, rounded up to a multiple of this;
    0 gives all of them ``seq_length`` tokens."""

    def plan(self, position: int) -> list[MicroBatchPlan]:
        """Plan this rank's micro-batches of the step that begins at ``position``.

        Every rank gets equally many, ``micro_batch_size`` sequences each.

        Raises:
            ValueError: a sample is too long, or a damaged one finds no replacement.
        """
        return self._deal(self._plan_step(position), self.data_parallel_rank)

    def build(self, position: int, plan: MicroBatchPlan) -> MicroBatch:
        """Read one micro-batch of ``plan``.

        Raises:
            CorruptSamplesFound: samples of it are damaged.
            ValueError: a sample cannot be written as tokens, or a shard has changed.
            OSError: a shard cannot be read.
        """
        offsets = [offset for sequence in plan.sequences for offset in sequence]
        samples = iter(collect(partial(self.read, position + offset) for offset in offsets))
        return build_micro_batch(
            [[next(samples) for _ in sequence] for sequence in plan.sequences],
            plan.sequence_length,
            self.encoder.pad_id,
            self.encoder.image_size if self.loads_images else 0,
            [[position + offset for offset in sequence] for sequence in plan.sequences],
            self.encoder.targets,
            plan.lane,
        )

    def step(self, position: int) -> list[MicroBatch]:
        """Read this rank's micro-batches of the step whose first sample is at ``position``.

        Raises:
            CorruptSamplesFound: it holds corrupt samples; known to all ranks by ``mark_corrupt``,
                they get replacements, with which the step has other sequences.
            ValueError: as ``plan`` and ``build``.
            OSError: a shard cannot be read.
        """
        return collect(partial(self.build, position, plan) for plan in self.plan(position))

    def describe(self) -> list[str]:
        """Return lines for the log: the samples, the mixture, tokens and padding."""
        lines = self.mixture.describe()
        positions = range(_DESCRIBED_STEPS * self.global_batch_size)
        drawn = [self.mixture.locate(position).task for position in positions]
        counts = ":".join(str(drawn.count(task)) for task in RATIO_ORDER)
        plans = [self._plan_step(first) for first in positions[:: self.global_batch_size]]
        num_sequences = sum(len(sequences) for plan in plans for sequences in plan.lanes.values())
        tokens = sum(sum(plan.lengths) for plan in plans)
        padding = 1 - tokens / sum(map(self._count_positions, plans))
        size = f"{'at most ' if self.length_multiple else ''}{self.seq_length}"
        return [
            *lines,
            f"the first {len(positions)} samples are {counts} "
            "(generation:understanding:text:mixed), "
            f"{tokens / len(positions):.0f} tokens each on average",
            f"{tokens / _DESCRIBED_STEPS:,.0f} tokens a step, in "
            f"{num_sequences / _DESCRIBED_STEPS:.1f} sequences of {size} tokens "
            f"with packing {'on' if self.packing else 'off'}, {padding:.1%} of them padding",
        ]

    def _plan_step(self, position: int) -> _StepPlan:
        """Lay out the step at ``position`` for all ranks, lane after lane."""
        positions = range(position, position + self.global_batch_size)
        lengths = [self.planned_length(number) for number in positions]
        members: dict[int, list[int]] = {}
        for offset, number in enumerate(positions):
            members.setdefault(self.encoder.lane(self.address(number).task), []).append(offset)
        multiple = self.micro_batch_size * self.data_parallel_size * self.micro_batch_multiple
        lanes = {}
        for lane, offsets in sorted(members.items()):
            own = [lengths[offset] for offset in offsets]
            sequences = plan_sequences(own, self.seq_length, self.packing, multiple)
            lanes[lane] = [[offsets[number] for number in sequence] for sequence in sequences]
        return _StepPlan(lengths, lanes)

    def _deal(self, plan: _StepPlan, rank: int) -> list[MicroBatchPlan]:
        """Return the micro-batches of a data-parallel rank."""
        deal = deal_equal_lengths if self.length_multiple else deal_sequences
        return [
            MicroBatchPlan(dealt, self._sequence_length(dealt, plan.lengths), lane)
            for lane, sequences in plan.lanes.items()
            for dealt in deal(sequences, rank, self.data_parallel_size, self.micro_batch_size)
        ]

    def _sequence_length(self, sequences: list[PackedSequence], lengths: list[int]) -> int:
        """Return how long the sequences of a micro-batch are."""
        if not self.length_multiple:
            return self.seq_length
        num_tokens = [sum(lengths[number] for number in sequence) for sequence in sequences]
        return sequence_length(num_tokens, self.length_multiple, self.seq_length)

    def _count_positions(self, plan: _StepPlan) -> int:
        """Count the positions of a step's sequences on all ranks, padding included."""
        return sum(
            len(part.sequences) * part.sequence_length
            for rank in range(self.data_parallel_size)
            for part in self._deal(plan, rank)
        )
