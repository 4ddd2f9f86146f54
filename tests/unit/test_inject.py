import numpy as np
import pytest
import torch

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.loss import AIALoss
from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import AIA_TASKS, AIATerm, Segment, Task

NUM_HEADS = 3
TERMS = (
    AIATerm(Task.GENERATION, np.array([4, 5, 6]), np.array([0, 1])),
    AIATerm(Task.UNDERSTANDING, np.array([9]), np.array([4, 5])),
)
SEGMENTS = (Segment(0, 0, 10, TERMS), Segment(0, 10, 12))
SUMS = [4.5, 1.2]
INTENSITY = [4.5 / (3 * 3), 1.2 / (3 * 1)]


def objective() -> AIALoss:
    layers = {task: np.full(5, 0.3) for task in AIA_TASKS}
    return AIALoss(LayerTargets(layers, layers), dict.fromkeys(AIA_TASKS, 40.0), 5, 7)


def aia(with_objective: bool = True, segments: tuple[Segment, ...] = SEGMENTS) -> AIAContext:
    return AIAContext(segments, objective() if with_objective else None, NUM_HEADS)


def leaves() -> tuple[torch.Tensor, torch.Tensor]:
    output = torch.arange(6.0).requires_grad_()
    return output, torch.tensor(SUMS, requires_grad=True)


def test_terms_are_numbered_over_the_segments() -> None:
    assert aia().term_tasks == (Task.GENERATION, Task.UNDERSTANDING)
    assert aia().query_counts == (3, 1)


def test_attach_is_the_identity_and_adds_the_gradient_of_the_sums() -> None:
    output, sums = leaves()
    given = aia()
    attached = given.attach(output * 1, sums * 1, layer=2)
    assert attached.tolist() == output.tolist()
    (attached * torch.arange(6.0)).sum().backward()
    assert output.grad.tolist() == torch.arange(6.0).tolist()
    weight = 40 / (5 * 7)
    expected = [weight * (INTENSITY[0] - 0.3) / 9, weight * (INTENSITY[1] - 0.3) / 3]
    assert sums.grad.tolist() == pytest.approx(expected)
    assert given.intensity(2).tolist() == pytest.approx(INTENSITY)
    assert given.measured == ((0, 2),)


def test_the_gradient_uses_the_reduced_sums_and_not_the_local_ones() -> None:
    output, sums = leaves()
    given = aia()
    attached = given.attach(output * 1, sums * 1, layer=0)
    given.intensities[0, 0].wait().mul_(2)  # what another rank's equal share does
    attached.sum().backward()
    weight = 40 / (5 * 7)
    assert sums.grad[0].item() == pytest.approx(weight * 0.3 / 9)  # clipped: 1.0 - 0.3 > delta


def test_a_layer_that_runs_twice_counts_once() -> None:
    output, sums = leaves()
    given = aia()
    given.attach(output * 1, sums * 1, layer=0)
    given.attach(output * 1, sums * 1, layer=0).sum().backward()
    once = aia()
    once_output, once_sums = leaves()
    once.attach(once_output * 1, once_sums * 1, layer=0).sum().backward()
    assert sums.grad.tolist() == once_sums.grad.tolist()
    assert given.intensity(0).tolist() == pytest.approx(INTENSITY)


@pytest.mark.parametrize("with_objective", [True, False])
def test_measuring_without_gradient(with_objective: bool) -> None:
    given = aia(with_objective)
    with torch.no_grad():
        output, sums = leaves()
        assert given.attach(output, sums, layer=0) is output
    assert given.intensity(0).tolist() == pytest.approx(INTENSITY)


def test_without_objective_nothing_is_injected() -> None:
    output, sums = leaves()
    assert aia(with_objective=False).attach(output, sums, layer=0) is output


def test_without_terms_the_output_is_untouched() -> None:
    given = aia(segments=(Segment(0, 0, 4),))
    output = torch.ones(3, requires_grad=True)
    assert given.attach(output, torch.zeros(0, requires_grad=True), layer=0) is output
    assert given.measured == ()


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_sums_are_stored_apart_and_at_least_in_float32(
    dtype: torch.dtype, stored: torch.dtype
) -> None:
    given = aia()
    sums = torch.tensor(SUMS, dtype=dtype)
    given.attach(torch.ones(1), sums, layer=0)
    sums.zero_()
    assert given.intensity(0).dtype == stored
    assert given.intensity(0).tolist() == pytest.approx(INTENSITY, rel=1e-2)


def test_a_layer_that_did_not_run_has_no_intensity() -> None:
    with pytest.raises(KeyError):
        aia().intensity(0)
