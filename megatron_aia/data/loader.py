"""The micro-batches of a step, from the position of its first sample.

A step is ``global_batch_size`` consecutive positions. Packing, micro-batch size and data-parallel
size only lay these samples out, so they may all change when a run goes on from a checkpoint.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from megatron_aia.config.layout import row_multiple
from megatron_aia.config.tree import Config
from megatron_aia.data.batch import MicroBatch, build_micro_batch
from megatron_aia.data.lengths import token_lengths
from megatron_aia.data.mixture import Mixture, SampleAddress
from megatron_aia.data.open_mixture import open_mixture
from megatron_aia.data.packing import (
    Row,
    deal_like_rows,
    deal_rows,
    plan_rows,
    row_length,
    truncate,
)
from megatron_aia.data.sample import PromptBuilder, RawSample, TokenizedSample
from megatron_aia.data.task_mixture import RATIO_ORDER

_DESCRIBED_STEPS = 4


class _Plan(NamedTuple):
    """The rows of a step; samples are numbered from its first position on."""

    lengths: list[int]
    """Tokens to keep free for each sample."""
    rows: list[Row]


@dataclass(frozen=True, kw_only=True)
class GlobalBatches:
    """The samples of every step, as the micro-batches of one data-parallel rank."""

    mixture: Mixture
    """From position to sample."""
    prompt: PromptBuilder
    """Writes a sample as tokens; no longer with its prompt dropped than with it."""
    prompt_fingerprint: str
    """Changes whenever ``prompt`` may return something else."""
    seq_length: int
    """Tokens of a row."""
    global_batch_size: int
    """Samples of a step, over all ranks."""
    micro_batch_size: int
    """Rows of a micro-batch."""
    data_parallel_rank: int
    data_parallel_size: int
    packing: bool
    """Put several samples into a row."""
    micro_batch_multiple: int
    """The number of micro-batches of a rank is a multiple of this."""
    pad_id: int
    """Token id of padding."""
    codebook_size: int
    """Image codes are below this."""
    prompt_drop: float
    """Share of generation samples that lose their prompt."""
    overlong: Literal["error", "truncate"]
    """What to do with a sample longer than a row."""
    image_size: int = 0
    """Side in pixels of the images of a micro-batch; 0 where no image is needed."""
    row_multiple: int = 0
    """Rows are as long as the longest of their micro-batch, rounded up to a multiple of this; 0
    gives all of them ``seq_length`` tokens."""

    def check(self) -> None:
        """Check that every sample of the mixture fits a row, or can be cut to.

        Raises:
            ValueError: some do not; the text names the longest.
        """
        longest, address, count = 0, (0, 0), 0
        for number, samples in self.mixture.samples_in_use():
            lengths = self._lengths[number][samples]
            overlong = samples[lengths > self.seq_length]
            count += len(overlong)
            if lengths.max(initial=0) > longest:
                longest, address = int(lengths.max()), (number, int(samples[lengths.argmax()]))
            if self.overlong == "truncate":
                for sample in overlong:
                    raw = self._read_raw(number, int(sample))
                    truncate(self.prompt.outline(raw), self.seq_length)
        if count and self.overlong == "error":
            index_number, sample_number = address
            raise ValueError(
                f"{count} samples are longer than a row of {self.seq_length} tokens; the longest, "
                f"{self.mixture.indexes[index_number].key(sample_number)}, has {longest}: pass "
                f"--seq-length {longest} or more, or --overlong-samples truncate"
            )

    def step(self, position: int) -> list[MicroBatch]:
        """Read this rank's micro-batches of the step whose first sample is at ``position``.

        Every rank gets equally many, ``micro_batch_size`` rows each; a row may be all padding.

        Raises:
            ValueError: a sample is too long or cannot be read, or a picture is damaged.
        """
        plan = self._plan(position)
        return [
            build_micro_batch(
                [[self._read(position + offset) for offset in row] for row in rows],
                self._row_length(rows, plan),
                self.pad_id,
                self.image_size,
                [[position + offset for offset in row] for row in rows],
            )
            for rows in self._deal(plan, self.data_parallel_rank)
        ]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides which tokens a position stands for.

        A checkpoint's position is good only under the same fingerprint. The layout (packing,
        batch sizes, ranks) is not part of it.
        """
        meaning = [
            self.mixture.fingerprint,
            self.prompt_fingerprint,
            self.seq_length,
            float(self.prompt_drop),
            self.overlong,
        ]
        return hashlib.sha256(repr(meaning).encode()).hexdigest()[:16]

    def describe(self) -> list[str]:
        """Return lines for the log: the samples, the mixture, tokens and padding."""
        lines = self.mixture.describe()
        positions = range(_DESCRIBED_STEPS * self.global_batch_size)
        drawn = [self.mixture.locate(position).task for position in positions]
        counts = ":".join(str(drawn.count(task)) for task in RATIO_ORDER)
        plans = [self._plan(first) for first in positions[:: self.global_batch_size]]
        num_rows = sum(len(plan.rows) for plan in plans)
        tokens = sum(sum(plan.lengths) for plan in plans)
        padding = 1 - tokens / sum(map(self._count_positions, plans))
        size = f"{'at most ' if self.row_multiple else ''}{self.seq_length}"
        return [
            *lines,
            f"the first {len(positions)} samples are {counts} "
            "(generation:understanding:text:mixed), "
            f"{tokens / len(positions):.0f} tokens each on average",
            f"{num_rows / _DESCRIBED_STEPS:.1f} rows of {size} tokens a step "
            f"with packing {'on' if self.packing else 'off'}, {padding:.1%} of them padding",
        ]

    @cached_property
    def _lengths(self) -> tuple[np.ndarray, ...]:
        """Tokens of every sample, int32 ``[len(index)]`` for each index of the mixture."""
        return tuple(
            token_lengths(index, self.prompt, self.prompt_fingerprint, self.codebook_size)
            for index in self.mixture.indexes
        )

    def _planned_length(self, address: SampleAddress) -> int:
        """Return the tokens to keep free for a sample; one with a dropped prompt may need less."""
        length = int(self._lengths[address.index_number][address.sample_number])
        return min(length, self.seq_length) if self.overlong == "truncate" else length

    def _plan(self, position: int) -> _Plan:
        """Lay out the step at ``position``."""
        lengths = [
            self._planned_length(self.mixture.locate(position + offset))
            for offset in range(self.global_batch_size)
        ]
        multiple = self.micro_batch_size * self.data_parallel_size * self.micro_batch_multiple
        return _Plan(lengths, plan_rows(lengths, self.seq_length, self.packing, multiple))

    def _deal(self, plan: _Plan, rank: int) -> list[list[Row]]:
        """Return the micro-batches of a data-parallel rank."""
        deal = deal_like_rows if self.row_multiple else deal_rows
        return deal(plan.rows, rank, self.data_parallel_size, self.micro_batch_size)

    def _row_length(self, rows: list[Row], plan: _Plan) -> int:
        """Return how long the rows of a micro-batch are. All ranks that share it agree."""
        if not self.row_multiple:
            return self.seq_length
        num_tokens = [sum(plan.lengths[number] for number in row) for row in rows]
        return row_length(num_tokens, self.row_multiple, self.seq_length)

    def _count_positions(self, plan: _Plan) -> int:
        """Count the positions of a step's rows on all ranks, padding included."""
        return sum(
            len(rows) * self._row_length(rows, plan)
            for rank in range(self.data_parallel_size)
            for rows in self._deal(plan, rank)
        )

    def _read(self, position: int) -> TokenizedSample:
        address = self.mixture.locate(position)
        drop = self.mixture.drops_prompt(position, self.prompt_drop)
        raw = self._read_raw(address.index_number, address.sample_number)
        sample = self.prompt(raw, drop)
        if self.overlong == "truncate":
            sample = truncate(sample, self.seq_length)
        assert len(sample) <= self._planned_length(address), f"{sample.key} grew without its prompt"
        return sample

    def _read_raw(self, index_number: int, sample_number: int) -> RawSample:
        return self.mixture.indexes[index_number].read(sample_number, self.codebook_size)


def build_global_batches(
    config: Config,
    prompt: PromptBuilder,
    prompt_fingerprint: str,
    pad_id: int,
    codebook_size: int,
    data_parallel_rank: int,
    data_parallel_size: int,
    micro_batch_multiple: int,
    image_size: int = 0,
) -> GlobalBatches:
    """Open the data folders of a run. Whether its samples fit a row, ``check`` tells.

    ``image_size`` is 0 for a model that looks at codes only, and on every pipeline stage but the
    first, which alone needs the images.

    Raises:
        ValueError: no data folder is given, one is damaged or made for a larger codebook, a
            mixture file is wrong, or a source has no samples.
    """
    data = config.data
    return GlobalBatches(
        mixture=open_mixture(data, config.run.seed, codebook_size),
        prompt=prompt,
        prompt_fingerprint=prompt_fingerprint,
        seq_length=data.seq_length,
        global_batch_size=data.global_batch_size,
        micro_batch_size=data.micro_batch_size,
        data_parallel_rank=data_parallel_rank,
        data_parallel_size=data_parallel_size,
        packing=data.packing,
        micro_batch_multiple=micro_batch_multiple,
        pad_id=pad_id,
        codebook_size=codebook_size,
        prompt_drop=data.prompt_drop,
        overlong=data.overlong_samples,
        image_size=image_size,
        row_multiple=row_multiple(config) if data.variable_seq_lengths else 0,
    )
