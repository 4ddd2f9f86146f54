"""Rows of packed samples as tensors: what one forward pass of any pipeline stage needs."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from megatron_aia.aia.roles import Segment, find_terms
from megatron_aia.data.sample import TokenizedSample
from megatron_aia.runtime.row_chunks import take_held

PADDING_SEGMENT = -1


@dataclass(frozen=True)
class MicroBatch:
    """``b`` rows of ``s`` tokens. Labels are already shifted: position i predicts ``labels[i]``.

    The last token of a sample predicts nothing, so no label crosses into the next sample.
    """

    tokens: torch.Tensor
    """int64 ``[b, s]``; padding holds the pad id."""
    labels: torch.Tensor
    """int64 ``[b, s]``; any valid id where the weight is 0."""
    label_weights: torch.Tensor
    """float32 ``[b, s]``; weight w_t of the label at this position, 0 without a label."""
    label_tasks: torch.Tensor
    """int64 ``[b, s]``; task of the sample the position belongs to (0 in padding)."""
    position_ids: torch.Tensor
    """int64 ``[b, s]``; restart at 0 with every sample."""
    segment_ids: torch.Tensor
    """int64 ``[b, s]``; counts samples over the micro-batch, ``PADDING_SEGMENT`` in padding."""
    segments: tuple[Segment, ...]
    """One for each sample, in the order of ``segment_ids``. Host data: kernels plan with it."""
    tasks: tuple[int, ...]
    """Task of each sample, in the same order."""
    images: torch.Tensor | None = None
    """uint8 ``[n, 3, size, size]``: images to look at in the order of their tokens, row by row from
    left to right; None for a model without them, and where they were not asked for."""
    row_tokens: torch.Tensor | None = None
    """int64 ``[b, whole row]``: tokens of the rows that the other tensors hold a part of; None
    where they hold all of it."""

    def pin_memory(self) -> "MicroBatch":
        """Return a copy in page-locked memory, from which a GPU fetches while it computes."""
        pinned: dict[str, Any] = {
            field.name: value.pin_memory()
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **pinned)

    @property
    def num_tokens(self) -> int:
        """Tokens that belong to samples."""
        return sum(segment.stop - segment.start for segment in self.segments)


_BY_TOKEN = ("tokens", "labels", "label_weights", "label_tasks", "position_ids", "segment_ids")


def held_by_rank(batch: MicroBatch, rank: int, size: int) -> MicroBatch:
    """Return what one of ``size`` context-parallel ranks holds of a micro-batch of whole rows.

    Whatever has an entry for each token is cut. What describes the rows stays whole: segments and
    their terms, tasks, images.
    """
    if size == 1:
        return batch
    held: dict[str, Any] = {
        name: take_held(getattr(batch, name), rank, size, dim=1) for name in _BY_TOKEN
    }
    return replace(batch, **held, row_tokens=batch.tokens)


def build_micro_batch(
    rows: Sequence[Sequence[TokenizedSample]],
    seq_length: int,
    pad_id: int,
    image_size: int = 0,
    run_positions: Sequence[Sequence[int]] | None = None,
) -> MicroBatch:
    """Lay samples out in rows, left to right, and load their images.

    Args:
        rows: ``b`` rows; an empty row is all padding.
        seq_length: tokens of a row; no row's samples may need more.
        pad_id: id written into padding.
        image_size: side in pixels of the images to load; 0 loads none.
        run_positions: position of each sample in the order of the run, in the shape of ``rows``;
            without them, samples are counted from 0.

    Raises:
        ValueError: the samples of a row are longer than ``seq_length`` together, or a picture is
            damaged.
    """
    shape = (len(rows), seq_length)
    tokens = np.full(shape, pad_id, np.int64)
    labels = np.full(shape, pad_id, np.int64)
    weights = np.zeros(shape, np.float32)
    label_tasks = np.zeros(shape, np.int64)
    positions = np.zeros(shape, np.int64)
    segment_ids = np.full(shape, PADDING_SEGMENT, np.int64)
    segments: list[Segment] = []
    tasks: list[int] = []
    for b, samples in enumerate(rows):
        start = 0
        for number, sample in enumerate(samples):
            stop = start + len(sample)
            if stop > seq_length:
                raise ValueError(
                    f"sample {sample.key} ends at token {stop} of a row of {seq_length}; "
                    "raise --seq-length or pass --overlong-samples truncate"
                )
            tokens[b, start:stop] = sample.tokens
            labels[b, start : stop - 1] = sample.tokens[1:]
            weights[b, start : stop - 1] = sample.label_weights[1:]
            label_tasks[b, start:stop] = int(sample.task)
            positions[b, start:stop] = np.arange(len(sample))
            segment_ids[b, start:stop] = len(segments)
            position = run_positions[b][number] if run_positions else len(segments)
            segments.append(Segment(b, start, stop, find_terms(sample.roles, start), position))
            tasks.append(int(sample.task))
            start = stop
    return MicroBatch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        label_weights=torch.from_numpy(weights),
        label_tasks=torch.from_numpy(label_tasks),
        position_ids=torch.from_numpy(positions),
        segment_ids=torch.from_numpy(segment_ids),
        segments=tuple(segments),
        tasks=tuple(tasks),
        images=_load_images(rows, image_size) if image_size else None,
    )


def with_loaded_images(sample: TokenizedSample) -> TokenizedSample:
    """Read the images of a sample now, so that damage shows while it is known whose it is.

    Raises:
        DamagedSample: a picture is damaged.
    """
    pictures = [image.load() for image in sample.images]
    images = zip(sample.images, pictures, strict=True)
    loaded = tuple(replace(image, load=partial(_same, pixels)) for image, pixels in images)
    return replace(sample, images=loaded)


def _same(pixels: np.ndarray) -> np.ndarray:
    return pixels


def _load_images(rows: Sequence[Sequence[TokenizedSample]], size: int) -> torch.Tensor:
    sources = [image for samples in rows for sample in samples for image in sample.images]
    images = torch.empty(len(sources), 3, size, size, dtype=torch.uint8)
    for number, source in enumerate(sources):
        pixels = torch.from_numpy(source.load())
        assert pixels.shape == (3, size, size), f"the prompt made an image {list(pixels.shape)}"
        images[number] = pixels
    return images
