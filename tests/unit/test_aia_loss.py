import numpy as np
import pytest
import torch

from megatron_aia.aia.loss import AIALoss, huber, huber_gradient, mse, mse_gradient
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
    assert huber_gradient(x, 0.25).tolist() == [-0.25, -0.25, -0.1, 0.0, 0.1, 0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("penalty", "gradient"),
    [
        (lambda x: huber(x, 0.3), lambda x: huber_gradient(x, 0.3)),
        (lambda x: huber(x, torch.full_like(x, 0.3)), lambda x: huber_gradient(x, 0.3)),
        (mse, mse_gradient),
    ],
)
def test_written_gradients_are_the_derivatives(penalty, gradient) -> None:
    x = torch.linspace(-1, 1, 41, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(penalty(x).sum(), x)
    torch.testing.assert_close(gradient(x.detach()), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_penalties_keep_the_dtype(dtype: torch.dtype) -> None:
    x = torch.tensor([0.1, -3.0], dtype=dtype)
    for y in (huber(x, 0.5), huber_gradient(x, 0.5), mse(x), mse_gradient(x)):
        assert y.dtype == dtype


def test_objective_by_hand() -> None:
    # Layer 1: I - T = 0.3 and -0.05; thresholds 0.05 and 0.1; L A = 2 * 3.
    intensity = torch.tensor([0.5, 0.25], dtype=torch.float64)
    constants = objective().constants(AIA_TASKS)[:, 1]
    loss = objective().loss(intensity, constants)
    assert loss.tolist() == pytest.approx(
        [5 / 6 * (0.05 * 0.3 - 0.05**2 / 2), 10 / 6 * 0.05**2 / 2]
    )
    gradient = objective().gradient(intensity, constants)
    assert gradient.tolist() == pytest.approx([5 / 6 * 0.05, -10 / 6 * 0.05])


def test_mse_objective_by_hand() -> None:
    intensity = torch.tensor([0.5, 0.25], dtype=torch.float64)
    squares = objective(penalty="mse").loss(intensity, objective().constants(AIA_TASKS)[:, 1])
    assert squares.tolist() == pytest.approx([5 / 6 * 0.3**2, 10 / 6 * 0.05**2])


@pytest.mark.parametrize("penalty", ["huber", "mse"])
def test_objective_gradient_is_the_derivative(penalty: str) -> None:
    tasks = [AIA_TASKS[i % 2] for i in range(20)]
    for constants in objective().constants(tasks).unbind(1):
        intensity = torch.linspace(0, 1, 20, dtype=torch.float64, requires_grad=True)
        loss = objective(penalty=penalty).loss(intensity, constants)
        (expected,) = torch.autograd.grad(loss.sum(), intensity)
        got = objective(penalty=penalty).gradient(intensity.detach(), constants)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


def test_a_step_without_active_samples_has_no_loss() -> None:
    empty = objective(num_active=0)
    assert empty.loss(torch.zeros(0), empty.constants([])[:, 0]).tolist() == []
    constants = empty.constants(AIA_TASKS)[:, 0]
    assert empty.gradient(torch.ones(2), constants).tolist() == [0.0, 0.0]


def test_all_layers_at_once_are_each_layer() -> None:
    constants = objective().constants(AIA_TASKS)
    intensity = torch.tensor([[0.5, 0.25], [0.1, 0.9]], dtype=torch.float64)
    together = objective().loss(intensity, constants)
    for layer in range(2):
        alone = objective().loss(intensity[layer], constants[:, layer])
        assert torch.equal(together[layer], alone)
