"""PyTorch's fast attention kernels, called directly.

``scaled_dot_product_attention`` may pick another kernel without saying so, keeps the log-sum-exp
to itself, and hides the backward. The operators below do none of that. Backends: ``flash`` is
PyTorch's own, on a CPU and on CUDA; ``flash3`` and ``flash4`` are the packages of that generation,
which PyTorch puts behind the same operators (``runtime.device.use_flash_attention``); ``cudnn`` is
cuDNN's. On CUDA none was ever run; that the arguments fit is checked on PyTorch's meta device.

On CUDA neighbouring samples are one call of the flash operators, with their boundaries, whatever
the backend: PyTorch calls cuDNN's for equal lengths only.

Where context parallelism has cut a sample, its last n tokens attend to all of its m tokens. Kernels
disagree about a causal mask of unequal lengths (the CPU's starts at the first key, CUDA's ends at
the last), so none is asked for: the keys in front are one call without a mask, the square at the
end is another, and the two are merged by their log-sum-exp. Two calls were tested on the CPU only.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

_aten = torch.ops.aten


Backend = Literal["flash", "flash3", "flash4", "cudnn"]

Boundaries = tuple[Tensor | None, int]
"""Where several samples begin and the last ends, int32 ``[samples + 1]``, None for a single one;
and the tokens of the longest."""
_ONE_SAMPLE: Boundaries = (None, 0)

Extras = tuple[Tensor | int | None, ...]
"""What a kernel's backward wants back from its forward."""


def joins_samples(device: torch.device) -> bool:
    """Return whether one call attends to several samples, each inside itself."""
    return device.type != "cpu"


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    backend: Backend = "flash",
    boundaries: Boundaries = _ONE_SAMPLE,
) -> tuple[Tensor, Tensor, tuple[Extras, ...]]:
    """Causal attention of one sample, of its last n tokens, or of several whole ones.

    Args:
        query: ``[1, h, n, d]``; on CUDA bfloat16 with d a multiple of 8.
        key: ``[1, g, m, d]`` with h a multiple of g and m >= n: the sample up to its last query.
        value: as ``key``.
        scale: factor of the scores.
        backend: which kernel.
        boundaries: of the samples.

    Returns:
        The output ``[1, h, n, d]``; the log-sum-exp of the scaled scores ``[1, h, n]``, natural
        logarithm, float32 (float64 for float64 inputs); and what :func:`backward` wants back.
    """
    if boundaries[0] is not None:
        return _forward_joined(query, key, value, scale, boundaries)
    before = key.shape[2] - query.shape[2]
    square = (query, key[:, :, before:], value[:, :, before:])
    output, lse, extras = _forward(*square, True, scale, backend)
    if not before:
        return output, lse, (extras,)
    front = (query, key[:, :, :before], value[:, :, :before])
    front_output, front_lse, front_extras = _forward(*front, False, scale, backend)
    merged_lse = torch.logaddexp(front_lse, lse)
    merged = front_output * (front_lse - merged_lse).exp().unsqueeze(-1)
    merged += output * (lse - merged_lse).exp().unsqueeze(-1)
    return merged.to(query.dtype), merged_lse, (extras, front_extras)


def backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    extras: Sequence[Extras],
    scale: float,
    backend: Backend = "flash",
    boundaries: Boundaries = _ONE_SAMPLE,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value.

    The kernels read ``output`` only to form D = rowsum(grad_output * output), and ``lse`` to form
    the probabilities: with those of the whole sample, each of two calls gives its part exactly.
    """
    if boundaries[0] is not None:
        inputs = (grad_output, query, key, value, output)
        return _backward_joined(*inputs, lse, extras[0], scale, boundaries)
    before = key.shape[2] - query.shape[2]
    square = (query, key[:, :, before:], value[:, :, before:], output, lse)
    grad_query, grad_key, grad_value = _backward(
        grad_output, *square, True, extras[0], scale, backend
    )
    if not before:
        return grad_query, grad_key, grad_value
    front = (query, key[:, :, :before], value[:, :, :before], output, lse)
    front_query, front_key, front_value = _backward(
        grad_output, *front, False, extras[1], scale, backend
    )
    grad_key = torch.cat((front_key, grad_key), dim=2)
    grad_value = torch.cat((front_value, grad_value), dim=2)
    return front_query + grad_query, grad_key, grad_value


def _takes_cudnn(query: Tensor, key: Tensor, backend: Backend) -> bool:
    """Return whether cuDNN's kernel attends; PyTorch takes it for no sequence of one token."""
    return backend == "cudnn" and query.shape[2] > 1 and key.shape[2] > 1


def _forward(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float, backend: Backend
) -> tuple[Tensor, Tensor, Extras]:
    if query.device.type == "cpu":
        output, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, scale=scale
        )
        return output, lse, ()
    if _takes_cudnn(query, key, backend):
        output, lse, cum_q, cum_k, max_q, max_k, seed, offset, _ = (
            _aten._scaled_dot_product_cudnn_attention(
                query, key, value, None, True, 0.0, is_causal, scale=scale
            )
        )
        # cuDNN's has a last dimension of 1.
        lse = lse.view(output.shape[:3])
    else:
        output, lse, cum_q, cum_k, max_q, max_k, seed, offset, _ = (
            _aten._scaled_dot_product_flash_attention(
                query, key, value, 0.0, is_causal, scale=scale
            )
        )
    return output, lse, (cum_q, cum_k, max_q, max_k, seed, offset)


def _backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    is_causal: bool,
    extras: Extras,
    scale: float,
    backend: Backend,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (grad_output, query, key, value, output)
    if query.device.type == "cpu":
        gradients = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *inputs, lse, 0.0, is_causal, scale=scale
        )
    elif _takes_cudnn(query, key, backend):
        cum_q, cum_k, max_q, max_k, seed, offset = extras
        gradients = _aten._scaled_dot_product_cudnn_attention_backward(
            *(*inputs, lse.unsqueeze(-1), seed, offset, None, cum_q, cum_k, max_q, max_k),
            *(0.0, is_causal),
            scale=scale,
        )
    else:
        cum_q, cum_k, max_q, max_k, seed, offset = extras
        gradients = _aten._scaled_dot_product_flash_attention_backward(
            *(*inputs, lse, cum_q, cum_k, max_q, max_k, 0.0, is_causal, seed, offset),
            scale=scale,
        )
    grad_query, grad_key, grad_value = gradients
    return grad_query, grad_key, grad_value


def _forward_joined(
    query: Tensor, key: Tensor, value: Tensor, scale: float, boundaries: Boundaries
) -> tuple[Tensor, Tensor, tuple[Extras, ...]]:
    cumulative, longest = boundaries
    by_token = [x[0].transpose(0, 1) for x in (query, key, value)]
    output, lse, seed, offset, _ = _aten._flash_attention_forward(
        *(*by_token, cumulative, cumulative, longest, longest, 0.0, True, False), scale=scale
    )
    return output.transpose(0, 1).unsqueeze(0), lse.unsqueeze(0), ((seed, offset),)


def _backward_joined(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    extras: Extras,
    scale: float,
    boundaries: Boundaries,
) -> tuple[Tensor, Tensor, Tensor]:
    cumulative, longest = boundaries
    by_token = [x[0].transpose(0, 1) for x in (grad_output, query, key, value, output)]
    ends = (cumulative, cumulative, longest, longest, 0.0, True)
    gradients = _aten._flash_attention_backward(*by_token, lse[0], *ends, *extras, scale=scale)
    grad_query, grad_key, grad_value = (x.transpose(0, 1).unsqueeze(0) for x in gradients)
    return grad_query, grad_key, grad_value
