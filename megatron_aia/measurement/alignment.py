"""Mutual k-nearest-neighbour alignment of two sets of features (UniFork, section 3.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_aia.aia.roles import Task

_EQUALLY_NEAR = 1e-6
"""Difference of cosines; float32 features of one picture differ by less."""


@dataclass(frozen=True)
class TaskFeatures:
    """Features of the samples of one task."""

    task: Task
    samples: Sequence[Tensor]
    """Float32 ``[2, layers, width]`` each: means over the image's and over the prompt's positions
    of the hidden states behind each layer, before the final norm."""
    inactive: Mapping[str, str]
    """Samples that were left out, each with its reason."""


def align_layers(
    found: TaskFeatures, k: int, same_layer: bool = False, clamp: float | None = None
) -> list[float]:
    """Return the mutual k-nearest-neighbour alignment of image and prompt by layer.

    Args:
        found: at least ``k + 1`` samples.
        k: neighbours.
        same_layer: compare with the prompt's features of the same layer, not of the last.
        clamp: quantile for :func:`clamp_outliers`; None leaves the features as they are.

    Raises:
        ValueError: as :func:`mutual_knn`.
    """
    image, prompt = torch.stack(list(found.samples)).unbind(1)

    def clamped(features: Tensor) -> Tensor:
        return features if clamp is None else clamp_outliers(features, clamp)

    return [
        mutual_knn(clamped(image[:, layer]), clamped(prompt[:, layer if same_layer else -1]), k)
        for layer in range(image.shape[1])
    ]


def clamp_outliers(features: Tensor, quantile: float) -> Tensor:
    """Clamp each feature to the mean over samples of the ``quantile`` of its absolute values.

    Args:
        features: ``[samples, width]``.
        quantile: in 0..1; 1 clamps to the mean of the samples' largest absolute values.
    """
    bound = features.abs().double().quantile(quantile, dim=-1).mean().to(features.dtype)
    return features.clamp(-bound, bound)


def nearest_neighbours(features: Tensor, k: int) -> Tensor:
    """Return whether each sample is one of the k of largest cosine similarity to another.

    Samples that are equally near at the k-th place, as those of one picture are, share it: their
    entries are the probability to be drawn for it. So no rounding decides.

    Args:
        features: ``[samples, width]``; compared in float64.
        k: from 1 to ``samples - 1``.

    Returns:
        float64 ``[samples, samples]``; a row adds up to k, the diagonal is 0.

    Raises:
        ValueError: there are not so many other samples, or a feature is zero or not finite.
    """
    samples = len(features)
    if not 1 <= k < samples:
        raise ValueError(f"{k} neighbours of {samples} samples: give 1 to {samples - 1}")
    norms = features.double().norm(dim=-1, keepdim=True)
    if not (norms.isfinite() & (norms > 0)).all():
        row = int((~(norms.isfinite() & (norms > 0))).flatten().nonzero()[0])
        raise ValueError(f"the features of sample {row} are zero or not finite")
    unit = features.double() / norms
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-torch.inf)
    last = similarity.topk(k, dim=-1).values[:, -1:]
    nearer = similarity > last + _EQUALLY_NEAR
    equal = (similarity - last).abs() <= _EQUALLY_NEAR
    left = (k - nearer.sum(-1, keepdim=True)) / equal.sum(-1, keepdim=True)
    return nearer.double() + equal * left


def mutual_knn(first: Tensor, second: Tensor, k: int) -> float:
    """Return the mean share of neighbours that two kinds of features have in common.

    ``1/B sum_b |kNN_first(b) n kNN_second(b)| / k``, in 0..1; its expectation where samples are
    equally near. Unrelated features give ``k / (B - 1)`` on average.

    Args:
        first: ``[samples, width]``, a sample a row.
        second: ``[samples, other width]``, the same samples in the same order.
        k: neighbours.

    Raises:
        ValueError: other numbers of samples, or as :func:`nearest_neighbours`.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} samples; both must have the same")
    common = nearest_neighbours(first, k) * nearest_neighbours(second, k)
    return float(common.sum(-1).mean() / k)
