"""A core attention outside a model: its configuration, a micro-batch, inputs and gradients."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from attention_cases import Case
from torch import Tensor

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.loss import AIALoss
from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import AIA_TASKS

HEADS, HEAD_SIZE, LAYER = 4, 16, 2


def config(**changes: Any) -> Any:
    fields = {"attention_dropout": 0.0, "num_attention_heads": HEADS, "kv_channels": HEAD_SIZE}
    sizes = {"context_parallel_size": 1, "tensor_model_parallel_size": 1}
    return SimpleNamespace(**{**fields, **sizes, **changes})


def aia_context(case: Case) -> AIAContext:
    layers = {task: np.full(3, 0.1) for task in AIA_TASKS}
    lambdas = dict.fromkeys(AIA_TASKS, 40.0)
    objective = AIALoss(LayerTargets(layers, layers), lambdas, 3, num_active=2)
    return AIAContext(case.segments, objective, HEADS)


def sbhd(case: Case) -> list[Tensor]:
    tensors = (case.query, case.key, case.value)
    return [x.permute(2, 0, 1, 3).contiguous().requires_grad_() for x in tensors]


def gradients(case: Case, inputs: list[Tensor], output: Tensor) -> list[Tensor]:
    (output * case.grad_output.permute(2, 0, 1, 3).flatten(2)).sum().backward()
    return [x.grad for x in inputs]
