"""Mutual k-nearest-neighbour alignment of two sets of features (UniFork, section 3.1)."""

import torch
from torch import Tensor


def clamp_outliers(features: Tensor, quantile: float) -> Tensor:
    """Clamp each feature to the mean over samples of the ``quantile`` of its absolute values.

    Args:
        features: ``[samples, width]``.
        quantile: in 0..1; 1 clamps to the mean of the samples' largest absolute values.
    """
    bound = features.abs().double().quantile(quantile, dim=-1).mean().to(features.dtype)
    return features.clamp(-bound, bound)


def nearest_neighbours(features: Tensor, k: int) -> Tensor:
    """Return the k samples of largest cosine similarity to each sample, itself not among them.

    Args:
        features: ``[samples, width]``; compared in float64.
        k: from 1 to ``samples - 1``.

    Returns:
        int64 ``[samples, k]``.

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
    return similarity.topk(k, dim=-1).indices


def mutual_knn(first: Tensor, second: Tensor, k: int) -> float:
    """Return the mean share of neighbours that two kinds of features have in common.

    ``1/B sum_b |kNN_first(b) n kNN_second(b)| / k``, in 0..1. Unrelated features give
    ``k / (B - 1)`` on average.

    Args:
        first: ``[samples, width]``, a sample a row.
        second: ``[samples, other width]``, the same samples in the same order.
        k: neighbours.

    Raises:
        ValueError: other numbers of samples, or as :func:`nearest_neighbours`.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} samples; both must have the same")
    pairs = nearest_neighbours(first, k), nearest_neighbours(second, k)
    common = (pairs[0][:, :, None] == pairs[1][:, None, :]).sum(dim=(1, 2))
    return float(common.double().mean() / k)
