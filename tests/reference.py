"""The AIA loss as its definition reads: dense, slow, float64, by autograd. Shares no code with us.

A sample is anything with ``batch_index``, ``start``, ``stop`` and ``terms``; a term has ``task``,
``rows`` and ``keys``, positions in the sequence.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from megatron_aia.aia.roles import Segment, Task


def attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], scale: float
) -> tuple[Tensor, list[Tensor]]:
    """Output ``[b, h, s, d]`` and, for each term, the mean attention mass of its rows (Eq. 1)."""
    heads_of_key = query.shape[1] // key.shape[1]
    output = torch.zeros_like(query)
    intensities = []
    for segment in segments:
        b, start, n = segment.batch_index, segment.start, segment.stop - segment.start
        heads = []
        maps = []
        for h in range(query.shape[1]):
            q = query[b, h, start : segment.stop]
            k = key[b, h // heads_of_key, start : segment.stop]
            v = value[b, h // heads_of_key, start : segment.stop]
            future = torch.ones(n, n, dtype=torch.bool).triu(1)
            maps.append(torch.softmax((q @ k.T * scale).masked_fill(future, -torch.inf), dim=-1))
            heads.append(maps[-1] @ v)
        padded = torch.zeros_like(output)
        padded[b, :, start : segment.stop] = torch.stack(heads)
        output = output + padded
        for term in segment.terms:
            rows, keys = term.queries - start, term.keys - start
            masses = [p[rows][:, keys].sum(dim=1) for p in maps]
            intensities.append(torch.stack(masses).mean())
    return output, intensities


def huber(x: Tensor, delta: float) -> Tensor:
    """Eq. 2, of one number."""
    if abs(x.item()) <= delta:
        return x**2 / 2
    return delta * abs(x) - delta**2 / 2


def aia_loss(
    layers: Sequence[Sequence[Tensor]],
    tasks: Sequence[Task],
    target: Mapping[Task, Sequence[float]],
    delta: Mapping[Task, Sequence[float]],
    lambdas: Mapping[Task, float],
) -> Tensor:
    """Eq. 3 without its next-token part, of one global batch: intensities by layer and term."""
    total = torch.zeros((), dtype=torch.float64)
    for layer, intensities in enumerate(layers):
        for task, intensity in zip(tasks, intensities, strict=True):
            distance = intensity - target[task][layer]
            share = lambdas[task] / (len(layers) * len(tasks))
            total = total + share * huber(distance, delta[task][layer])
    return total
