"""Sequences of packed samples as tensors: what one forward pass of any pipeline stage needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from megatron_aia.aia.roles import Segment, find_terms
from megatron_aia.data.sample import TokenizedSample
from megatron_aia.data.targets import (
    NEXT_TOKEN,
    NEXT_TOKEN_ONLY,
    BatchTarget,
    TargetCollator,
    TargetWidths,
)
from megatron_aia.runtime.context_parallel_slices import slice_tensor

PADDING_SEGMENT = -1


@dataclass(frozen=True)
class MicroBatch:
    """``b`` sequences of ``s`` tokens."""

    tokens: torch.Tensor
    """int64 ``[b, s]``; padding holds the pad id."""
    position_ids: torch.Tensor
    """int64 ``[b, s]``; restart at 0 with every sample."""
    segment_ids: torch.Tensor
    """int64 ``[b, s]``; counts samples over the micro-batch, ``PADDING_SEGMENT`` in padding."""
    segments: tuple[Segment, ...]
    """One for each sample, in the order of ``segment_ids``. Host data: kernels plan with it."""
    tasks: tuple[int, ...]
    """Task of each sample, in the same order."""
    targets: Mapping[str, BatchTarget]
    """What is to be learned, by name: every target that the encoder declares."""
    lane: int = 0
    """Of all samples: which of the model's ways they take; see ``SampleEncoder.lane``."""
    images: torch.Tensor | None = None
    """uint8 ``[n, 3, size, size]``: images to look at in the order of their tokens, sequence by
    sequence from left to right; None for a model without them, and where they were not asked
    for."""
    sequence_tokens: torch.Tensor | None = None
    """int64 ``[b, whole sequence]``: tokens of the sequences that the other tensors hold a part
    of; None where they hold all of it."""
    places: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Where tokens stand that the model treats apart, by name; see ``ModelSpec.places``."""

    def pin_memory(self) -> "MicroBatch":
        """Return a copy in page-locked memory, from which a GPU fetches while it computes."""
        return self.map(torch.Tensor.pin_memory)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "MicroBatch":
        """Return a copy with ``function`` applied to every tensor."""
        changed: dict[str, Any] = {
            entry.name: function(value)
            for entry in fields(self)
            if isinstance(value := getattr(self, entry.name), torch.Tensor)
        }
        targets = {name: target.map(function) for name, target in self.targets.items()}
        places = {name: function(positions) for name, positions in self.places.items()}
        return replace(self, **changed, targets=targets, places=places)

    def next_token_labels(self, fill: int) -> torch.Tensor:
        """Return the ids to predict, int64 ``[b, s]``; ``fill`` where there is none."""
        labels = torch.full_like(self.tokens, fill)
        target = self.targets.get(NEXT_TOKEN)
        if target is not None:
            labels.view(-1).index_copy_(0, target.positions, target.values)
        return labels

    @property
    def num_tokens(self) -> int:
        """Tokens that belong to samples."""
        return sum(segment.stop - segment.start for segment in self.segments)


_BY_TOKEN = ("tokens", "position_ids", "segment_ids")


def slice_for_rank(
    batch: MicroBatch, rank: int, size: int
) -> tuple[MicroBatch, dict[str, torch.Tensor]]:
    """Return what one of ``size`` context-parallel ranks holds of a micro-batch of whole sequences.

    Whatever has an entry for each token is cut, and so are the targets. What describes the
    sequences stays whole: segments and their terms, tasks, images.

    Returns:
        The part, and by target the numbers of the entries that are in it.
    """
    length = batch.tokens.shape[1]
    found = {name: t.slice_for_rank(length, rank, size) for name, t in batch.targets.items()}
    kept = {name: numbers for name, (_, numbers) in found.items()}
    if size == 1:
        return batch, kept
    held: dict[str, Any] = {
        name: slice_tensor(getattr(batch, name), rank, size, dim=1) for name in _BY_TOKEN
    }
    targets = {name: target for name, (target, _) in found.items()}
    return replace(batch, **held, targets=targets, sequence_tokens=batch.tokens), kept


def build_micro_batch(
    sequences: Sequence[Sequence[TokenizedSample]],
    seq_length: int,
    pad_id: int,
    image_size: int = 0,
    run_positions: Sequence[Sequence[int]] | None = None,
    targets: TargetWidths = NEXT_TOKEN_ONLY,
    lane: int = 0,
) -> MicroBatch:
    """Lay samples out in sequences, left to right, and load their images.

    Args:
        sequences: ``b`` sequences; an empty sequence is all padding.
        seq_length: tokens of a sequence; no sequence's samples may need more.
        pad_id: id written into padding.
        image_size: side in pixels of the images to load; 0 loads none.
        run_positions: position of each sample in the order of the run, in the shape of
            ``sequences``; without them, samples are counted from 0.
        targets: what the samples may have.
        lane: of all samples.

    Raises:
        ValueError: the samples of a sequence are longer than ``seq_length`` together, or a picture
            is damaged.
    """
    shape = (len(sequences), seq_length)
    tokens = np.full(shape, pad_id, np.int64)
    positions = np.zeros(shape, np.int64)
    segment_ids = np.full(shape, PADDING_SEGMENT, np.int64)
    segments: list[Segment] = []
    tasks: list[int] = []
    collator = TargetCollator(targets)
    for b, samples in enumerate(sequences):
        start = 0
        for number, sample in enumerate(samples):
            stop = start + len(sample)
            if stop > seq_length:
                raise ValueError(
                    f"sample {sample.key} ends at token {stop} of a sequence of {seq_length}; "
                    "raise --seq-length or pass --overlong-samples truncate"
                )
            tokens[b, start:stop] = sample.tokens
            positions[b, start:stop] = np.arange(len(sample))
            segment_ids[b, start:stop] = len(segments)
            collator.add(sample.targets, b * seq_length + start, int(sample.task), len(segments))
            position = run_positions[b][number] if run_positions else len(segments)
            segments.append(Segment(b, start, stop, find_terms(sample.roles, start), position))
            tasks.append(int(sample.task))
            start = stop
    return MicroBatch(
        tokens=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(positions),
        segment_ids=torch.from_numpy(segment_ids),
        segments=tuple(segments),
        tasks=tuple(tasks),
        targets=collator.collate(),
        lane=lane,
        images=_load_images(sequences, image_size) if image_size else None,
    )


def with_loaded_images(sample: TokenizedSample) -> TokenizedSample:
    """Read the images of a sample now, so that damage shows while it is known whose it is.

    Raises:
        CorruptSampleError: a picture is damaged.
    """
    pictures = [image.load() for image in sample.images]
    images = zip(sample.images, pictures, strict=True)
    loaded = tuple(replace(image, load=partial(_same, pixels)) for image, pixels in images)
    return replace(sample, images=loaded)


def _same(pixels: np.ndarray) -> np.ndarray:
    return pixels


def _load_images(sequences: Sequence[Sequence[TokenizedSample]], size: int) -> torch.Tensor:
    sources = [image for samples in sequences for sample in samples for image in sample.images]
    images = torch.empty(len(sources), 3, size, size, dtype=torch.uint8)
    for number, source in enumerate(sources):
        pixels = torch.from_numpy(source.load())
        assert pixels.shape == (3, size, size), f"the prompt made an image {list(pixels.shape)}"
        images[number] = pixels
    return images
