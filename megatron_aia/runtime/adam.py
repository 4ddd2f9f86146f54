"""AdamW whose step counter belongs to the parameter group, as in Apex and Transformer Engine.

torch's AdamW keeps one counter a parameter. megatron-core's distributed optimizer saves a single
counter and gives it back to all parameters as one shared tensor, which torch then advances once for
every parameter: after a resume the bias correction is wrong, without an error. A counter a group
removes the cause, and makes checkpoints of CPU and GPU runs alike.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adam import adam


class GroupStepAdamW(torch.optim.Optimizer):
    """AdamW with ``step`` in the parameter group and ``exp_avg``, ``exp_avg_sq`` in the state.

    Takes the arguments that megatron-core passes to Apex's and Transformer Engine's FusedAdam.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        assert not capturable, "a step in a CUDA graph needs Apex's or Transformer Engine's Adam"
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self._decoupled_weight_decay = adam_w_mode

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None and p.numel() > 0]
            group["step"] = group.get("step", 0) + 1
            if params:
                self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        for param in params:
            state = self.state[param]
            if not state:
                state["exp_avg"] = torch.zeros_like(param)
                state["exp_avg_sq"] = torch.zeros_like(param)
        steps_before = float(group["step"] - 1)
        adam(
            params,
            [p.grad for p in params if p.grad is not None],
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            max_exp_avg_sqs=[],
            state_steps=[torch.tensor(steps_before) for _ in params],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            decoupled_weight_decay=self._decoupled_weight_decay,
        )
