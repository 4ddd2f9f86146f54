"""The optimizer that takes Apex's place is torch's AdamW, number for number."""

import copy

import pytest
import torch

from megatron_aia.runtime.adam import GroupStepAdamW

pytestmark = pytest.mark.versions


@pytest.mark.parametrize(
    ("decoupled", "reference"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)]
)
def test_equals_torch(decoupled: bool, reference: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))]
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    a = GroupStepAdamW(ours, adam_w_mode=decoupled, **options)  # type: ignore[arg-type]
    b = reference(theirs, **options)  # type: ignore[arg-type]
    for _ in range(20):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_resumed_counter_advances_once_a_step() -> None:
    """The defect this class is for: torch's counters, shared after a load, ran ahead."""
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(5)]
    optimizer = GroupStepAdamW(params, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    resumed = GroupStepAdamW(params, lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    resumed.step()
    assert [group["step"] for group in resumed.param_groups] == [2]
    assert set(resumed.state[params[0]]) == {"exp_avg", "exp_avg_sq"}
