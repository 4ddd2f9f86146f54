"""The sample at a position of the run, as tokens."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from megatron_aia.data.batch import with_loaded_images
from megatron_aia.data.lengths import token_lengths
from megatron_aia.data.mixture import Mixture, SampleAddress
from megatron_aia.data.packing import truncate
from megatron_aia.data.replacements import CorruptSample, CorruptSamplesFound, locate_usable
from megatron_aia.data.sample import SampleEncoder, TokenizedSample
from megatron_aia.shards.raw_sample import CorruptSampleError, RawSample


@dataclass(frozen=True)
class PlacedSample:
    """What a run reads at one position."""

    address: SampleAddress
    raw: RawSample
    """As stored."""
    tokens: TokenizedSample
    """As the model reads it."""


@dataclass(frozen=True, kw_only=True)
class SampleReader:
    """Reads the samples of a run by position; replacements take the place of damaged ones."""

    mixture: Mixture
    """From position to sample."""
    encoder: SampleEncoder
    """Writes a sample as tokens; no longer with its prompt dropped than with it."""
    seq_length: int
    """Tokens of a sequence."""
    codebook_size: int
    """Image codes are below this."""
    cfg_drop_prob: float
    """Share of generation samples that lose their prompt."""
    overlong: Literal["error", "truncate"]
    """What to do with a sample longer than a sequence."""
    loads_images: bool = True
    """Read the images that the model looks at; only its first stage needs them."""
    found_corrupt: set[tuple[int, int]] = field(default_factory=set)
    """(index number, sample number) of corrupt samples that counting tokens does not find;
    filled by ``mark_corrupt`` with the same samples on every rank."""

    def check(self) -> None:
        """Check that every sample of the mixture fits a sequence, or can be cut to.

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
                    truncate(self.encoder.dry_run(raw), self.seq_length)
        if count and self.overlong == "error":
            index_number, sample_number = address
            raise ValueError(
                f"{count} samples are longer than a sequence of {self.seq_length} tokens; the "
                f"longest, {self.mixture.indexes[index_number].key(sample_number)}, has {longest}: "
                f"pass --seq-length {longest} or more, or --overlong-samples truncate"
            )

    def planned_length(self, position: int) -> int:
        """Return the tokens to keep free for a sample; one with a dropped prompt may need less."""
        return self._planned_length(self.address(position))

    def read(self, position: int) -> TokenizedSample:
        """Read the sample at ``position``, with its images where they are needed.

        Raises:
            CorruptSamplesFound: its content is damaged.
            ValueError: it cannot be written as tokens, or its shard has changed.
            OSError: its shard cannot be read.
        """
        address = self.address(position)
        place = (address.index_number, address.sample_number)
        try:
            sample = self._read_sample(
                *place, drop_prompt=self.mixture.drops_prompt(position, self.cfg_drop_prob)
            )
        except CorruptSampleError as error:
            raise CorruptSamplesFound((CorruptSample(*place, str(error)),)) from None
        if self.overlong == "truncate":
            sample = truncate(sample, self.seq_length)
        assert len(sample) <= self._planned_length(address), f"{sample.key} grew without its prompt"
        return sample

    def read_placed(self, position: int) -> PlacedSample:
        """As ``read``; return also where the sample comes from."""
        tokens = self.read(position)
        address = self.address(position)
        raw = self._read_raw(address.index_number, address.sample_number)
        return PlacedSample(address, raw, tokens)

    def mark_corrupt(self, samples: Iterable[CorruptSample]) -> None:
        """Let replacements take the place of these samples. All ranks must mark the same."""
        self.found_corrupt.update((each.index_number, each.sample_number) for each in samples)

    def find_corrupt(self, index_number: int, sample_number: int) -> CorruptSample | None:
        """Read a sample as ``build`` would; return what is wrong with it, None if nothing is."""
        try:
            self._read_sample(index_number, sample_number, drop_prompt=False)
        except CorruptSampleError as error:
            return CorruptSample(index_number, sample_number, str(error))
        return None

    def counted_corrupt(self) -> Iterator[CorruptSample]:
        """Yield the samples in use that turned out to be damaged when their tokens were counted."""
        for number, samples in self.mixture.samples_in_use():
            for sample in samples[self._lengths[number][samples] < 0]:
                if corrupt := self.find_corrupt(number, int(sample)):
                    yield corrupt

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides which tokens a position stands for.

        A checkpoint's position is good only under the same fingerprint. The layout (packing,
        batch sizes, ranks) is not part of it.
        """
        meaning = [
            self.mixture.fingerprint,
            self.encoder.fingerprint,
            self.seq_length,
            float(self.cfg_drop_prob),
            self.overlong,
        ]
        return hashlib.sha256(repr(meaning).encode()).hexdigest()[:16]

    @cached_property
    def _lengths(self) -> tuple[np.ndarray, ...]:
        """Tokens of every sample, int32 ``[len(index)]`` for each index of the mixture.

        Negative for a corrupt sample.
        """
        return tuple(
            token_lengths(index, self.encoder, self.codebook_size) for index in self.mixture.indexes
        )

    def address(self, position: int) -> SampleAddress:
        """Return where the sample at ``position``, or its replacement, is stored."""
        return locate_usable(self.mixture, position, self._is_damaged)

    def _is_damaged(self, address: SampleAddress) -> bool:
        place = (address.index_number, address.sample_number)
        return place in self.found_corrupt or bool(self._lengths[place[0]][place[1]] < 0)

    def _planned_length(self, address: SampleAddress) -> int:
        length = int(self._lengths[address.index_number][address.sample_number])
        return min(length, self.seq_length) if self.overlong == "truncate" else length

    def _read_sample(
        self, index_number: int, sample_number: int, drop_prompt: bool
    ) -> TokenizedSample:
        sample = self.encoder(self._read_raw(index_number, sample_number), drop_prompt)
        return with_loaded_images(sample) if self.loads_images else sample

    def _read_raw(self, index_number: int, sample_number: int) -> RawSample:
        return self.mixture.indexes[index_number].read(sample_number, self.codebook_size)
