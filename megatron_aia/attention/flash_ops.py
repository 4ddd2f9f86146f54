"""PyTorch's flash attention kernels, called directly.

``scaled_dot_product_attention`` may pick another kernel without saying so, keeps the log-sum-exp
to itself, and hides the backward. The operators below do none of that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_aten = torch.ops.aten


def forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor, tuple[Tensor | int, ...]]:
    """Causal attention of one sample.

    Args:
        query: ``[1, h, n, d]``; on CUDA bfloat16 with d a multiple of 8.
        key: ``[1, g, n, d]`` with h a multiple of g.
        value: as ``key``.
        scale: factor of the scores.

    Returns:
        The output ``[1, h, n, d]``; the log-sum-exp of the scaled scores ``[1, h, n]``, natural
        logarithm, float32 (float64 for float64 inputs); and what :func:`backward` wants back.
    """
    if query.device.type == "cpu":
        output, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=scale
        )
        return output, lse, ()
    output, lse, cum_q, cum_k, max_q, max_k, seed, offset, _ = (
        _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, scale=scale)
    )
    return output, lse, (cum_q, cum_k, max_q, max_k, seed, offset)


def backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    extras: Sequence[Tensor | int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value.

    The kernels read ``output`` only to form D = rowsum(grad_output * output).
    """
    if query.device.type == "cpu":
        gradients = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_output, query, key, value, output, lse, 0.0, True, scale=scale
        )
    else:
        cum_q, cum_k, max_q, max_k, seed, offset = extras
        gradients = _aten._scaled_dot_product_flash_attention_backward(
            *(grad_output, query, key, value, output, lse, cum_q, cum_k, max_q, max_k),
            *(0.0, True, seed, offset),
            scale=scale,
        )
    grad_query, grad_key, grad_value = gradients
    return grad_query, grad_key, grad_value
