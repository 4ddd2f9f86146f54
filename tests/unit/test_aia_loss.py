import numpy as np
import pytest
import torch

from megatron_aia.aia.loss import AIALoss, huber, mse
from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import AIA_TASKS, Task

TARGETS = LayerTargets(
    target={Task.GENERATION: np.array([0.4, 0.2]), Task.UNDERSTANDING: np.array([0.1, 0.3])},
    delta={Task.GENERATION: np.array([0.2, 0.05]), Task.UNDERSTANDING: np.array([0.05, 0.1])},
)
LAMBDAS = {Task.GENERATION: 5.0, Task.UNDERSTANDING: 10.0}


def objective(num_active: int = 3, penalty: str = "huber") -> AIALoss:
    return AIALoss(TARGETS, LAMBDAS, num_layers=2, num_active=num_active, penalty=penalty)


def test_huber_around_its_threshold() -> None:
    x = torch.tensor([-0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.25 + 1e-9, 0.5], dtype=torch.float64)
    expected = [0.09375, 0.03125, 0.005, 0.0, 0.005, 0.03125, 0.03125, 0.09375]
    assert huber(x, 0.25).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_penalties_keep_the_dtype(dtype: torch.dtype) -> None:
    x = torch.tensor([0.1, -3.0], dtype=dtype)
    for y in (huber(x, 0.5), mse(x)):
        assert y.dtype == dtype


def test_objective_by_hand() -> None:
    # Layer 1: I - T = 0.3 and -0.05; thresholds 0.05 and 0.1; L A = 2 * 3.
    intensity = torch.tensor([0.5, 0.25], dtype=torch.float64)
    constants = objective().constants(AIA_TASKS)[:, 1]
    loss = objective().loss(intensity, constants)
    assert loss.tolist() == pytest.approx(
        [5 / 6 * (0.05 * 0.3 - 0.05**2 / 2), 10 / 6 * 0.05**2 / 2]
    )
    pairs = [4, 8]
    sums = intensity * torch.tensor(pairs)
    of_gradient = objective().gradient_constants(AIA_TASKS, pairs)[:, 1]
    gradient = objective().gradient(sums, of_gradient)
    assert gradient.tolist() == pytest.approx([5 / 6 * 0.05 / 4, -10 / 6 * 0.05 / 8])


def test_mse_objective_by_hand() -> None:
    intensity = torch.tensor([0.5, 0.25], dtype=torch.float64)
    squares = objective(penalty="mse").loss(intensity, objective().constants(AIA_TASKS)[:, 1])
    assert squares.tolist() == pytest.approx([5 / 6 * 0.3**2, 10 / 6 * 0.05**2])


@pytest.mark.parametrize("penalty", ["huber", "mse"])
def test_objective_gradient_is_the_derivative(penalty: str) -> None:
    tasks = [AIA_TASKS[i % 2] for i in range(20)]
    pairs = [3 + i for i in range(20)]
    step = objective(penalty=penalty)
    for layer in range(2):
        constants = step.constants(tasks)[:, layer]
        of_gradient = step.gradient_constants(tasks, pairs)[:, layer]
        intensity = torch.linspace(0, 1, 20, dtype=torch.float64, requires_grad=True)
        loss = objective(penalty=penalty).loss(intensity, constants)
        (expected,) = torch.autograd.grad(loss.sum(), intensity)
        divisor = torch.tensor(pairs)
        got = step.gradient(intensity.detach() * divisor, of_gradient)
        torch.testing.assert_close(got, expected / divisor, rtol=1e-12, atol=1e-17)


def test_a_step_without_active_samples_has_no_loss() -> None:
    empty = objective(num_active=0)
    assert empty.loss(torch.zeros(0), empty.constants([])[:, 0]).tolist() == []
    of_gradient = empty.gradient_constants(AIA_TASKS, [1, 1])[:, 0].float()
    assert empty.gradient(torch.ones(2), of_gradient).tolist() == [0.0, 0.0]


def test_all_layers_at_once_are_each_layer() -> None:
    constants = objective().constants(AIA_TASKS)
    intensity = torch.tensor([[0.5, 0.25], [0.1, 0.9]], dtype=torch.float64)
    together = objective().loss(intensity, constants)
    for layer in range(2):
        alone = objective().loss(intensity[layer], constants[:, layer])
        assert torch.equal(together[layer], alone)
