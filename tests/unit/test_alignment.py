"""Mutual k nearest neighbours by hand and by a plain loop; features against hidden states."""

import numpy as np
import pytest
import torch
from support.foreign_models import MODELS

from megatron_aia.measurement.alignment import clamp_outliers, mutual_knn, nearest_neighbours
from megatron_aia.measurement.hf_features import Span, mean_features


def by_loop(first: np.ndarray, second: np.ndarray, k: int) -> float:
    """The definition in float64, a sample at a time."""

    def neighbours(features: np.ndarray, sample: int) -> set[int]:
        norms = np.linalg.norm(features, axis=1)
        cosine = features @ features[sample] / (norms * norms[sample])
        others = [other for other in range(len(features)) if other != sample]
        return set(sorted(others, key=lambda other: -cosine[other])[:k])

    shares = [len(neighbours(first, b) & neighbours(second, b)) / k for b in range(len(first))]
    return float(np.mean(shares))


def degrees(*angles: float) -> torch.Tensor:
    radians = torch.tensor(angles, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_by_hand() -> None:
    """On a circle: pairs (0, 1), (2, 3) in one, 2 is next to 1 in the other."""
    first, second = degrees(0, 10, 90, 105), degrees(0, 40, 50, 105)
    assert nearest_neighbours(first, 1).argmax(-1).tolist() == [1, 0, 3, 2]
    assert nearest_neighbours(second, 1).argmax(-1).tolist() == [1, 2, 1, 2]
    assert nearest_neighbours(second, 2).tolist() == [
        [0, 1, 1, 0],
        [1, 0, 1, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
    ]
    assert mutual_knn(first, second, 1) == 0.5
    assert mutual_knn(first, second, 3) == 1


@pytest.mark.parametrize("k", [1, 3, 10])
def test_equal_to_the_definition(k: int) -> None:
    generator = np.random.default_rng(k)
    first = generator.standard_normal((40, 6))
    second = np.tanh(first @ generator.standard_normal((6, 9))) + 0.5
    expected = by_loop(first, second, k)
    assert 0.1 < expected < 1
    found = mutual_knn(torch.from_numpy(first), torch.from_numpy(second), k)
    assert found == pytest.approx(expected, abs=1e-12)
    assert mutual_knn(torch.from_numpy(second), torch.from_numpy(first), k) == found


def test_length_does_not_count_and_unrelated_features_share_by_chance() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(500, 16, generator=generator) for _ in range(2))
    assert mutual_knn(first, first * torch.rand(500, 1, generator=generator), 10) == 1
    assert mutual_knn(first, second, 10) == pytest.approx(10 / 499, abs=0.006)


def test_samples_that_are_equally_near_share_a_place() -> None:
    """Rounding decides nothing: 1 and 2 are one picture, 3 is another way off."""
    pictures = degrees(0, 30, 30, 90)
    expected = torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=torch.float64)
    for noise in (0, 1e-7, -1e-7):
        noisy = pictures + torch.tensor([[0.0], [0], [1], [0]]) * noise
        assert torch.equal(nearest_neighbours(noisy, 1)[0], expected)
    # Every sample agrees with itself; those that share a place, half the time.
    assert mutual_knn(pictures, pictures, 1) == pytest.approx((0.5 + 1 + 1 + 0.5) / 4)


def test_outliers_are_clamped() -> None:
    features = torch.tensor([[0.0, 1.0, -9.0], [1.0, 3.0, 5.0]])
    assert clamp_outliers(features, 1).tolist() == [[0, 1, -7], [1, 3, 5]]
    assert clamp_outliers(features, 0.5).tolist() == [[0, 1, -2], [1, 2, 2]]


def test_wrong_numbers_are_named() -> None:
    features = torch.eye(4)
    with pytest.raises(ValueError, match="4 neighbours of 4 samples: give 1 to 3"):
        mutual_knn(features, features, 4)
    with pytest.raises(ValueError, match="4 and 3 samples"):
        mutual_knn(features, features[:3], 1)
    with pytest.raises(ValueError, match="sample 2 are zero or not finite"):
        mutual_knn(features, features * torch.tensor([[1.0], [1], [0], [1]]), 1)


@pytest.mark.parametrize("name", ["emu3", "llava", "qwen3_vl", "janus", "chameleon"])
def test_features_are_means_of_hidden_states(name: str) -> None:
    torch.manual_seed(1)
    case = MODELS[name]()
    spans = [Span(0, case.images), Span(1, torch.arange(3))]
    model = case.model.train()
    found = mean_features(model, case.inputs, spans)
    assert model.training
    with torch.no_grad():
        states = model.eval()(**case.inputs, output_hidden_states=True).hidden_states
    # The first is the embedding, the last stands behind the final norm.
    assert found.shape == (2, len(states) - 1, states[0].shape[-1])
    for layer, state in enumerate(states[1:-1]):
        for row in (0, 1):
            expected = state[row, spans[row].positions].mean(0)
            assert torch.allclose(found[row, layer], expected, atol=1e-6)
