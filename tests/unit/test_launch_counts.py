"""How many kernels the attention of a layer starts: bounds, so that it cannot creep up unseen.

A call of ``aten`` that makes no view is a kernel on a GPU. Two paths are counted: the CPU's, and
CUDA's on PyTorch's device ``meta``, which takes every call and computes nothing. Counted is the
second layer of a micro-batch: what a micro-batch lays out once, it has laid out.
"""

import attention_cases as cases
import pytest
import torch
from attention_cases import Case, make_case
from support.calls import Calls
from support.core_attention import aia_context, config, sbhd

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.roles import without_terms
from megatron_aia.attention.core_attention import AIACoreAttention
from megatron_aia.attention.methods import Method

MORE_FOR_AIA = 40
"""Calls of a layer with AIA on, beyond those with AIA off, at most."""

DRAWN = [cases.GEN_KEY] * 9 + [cases.PLAIN] + [cases.GEN_ROW] * 40 + [cases.PLAIN]
SEEN = [cases.UND_KEY] * 37 + [cases.PLAIN] * 3 + [cases.UND_ROW] * 11

PATHS = [("meta", torch.bfloat16), ("cpu", torch.float32)]


def packed(samples: int) -> Case:
    """Samples of both tasks in turn, of different lengths, and padding."""
    row = [(DRAWN if i % 2 else SEEN)[: -1 - i // 2 % 9] for i in range(samples)]
    return make_case([row], padding=5)


def count(case: Case, measured: bool, device: str, dtype: torch.dtype, method: str) -> Calls:
    """Count forward and backward of the second of two layers."""
    aia = aia_context(case)
    if not measured:
        aia = AIAContext(without_terms(case.segments), None, aia.num_heads)
    layers = [AIACoreAttention(config(), i + 1, method=Method(method, "counted")) for i in range(2)]
    for layer in layers:
        query, key, value = (x.detach().to(device, dtype).requires_grad_() for x in sbhd(case))
        with Calls() as calls:
            output = layer(query, key, value, None, attention_bias=aia)
            torch.autograd.grad(output, (query, key, value), torch.empty_like(output))
    return calls


@pytest.mark.parametrize(("device", "dtype"), PATHS)
@pytest.mark.parametrize("samples", [1, 2, 6, 12, 24])
def test_aia_costs_a_fixed_number_of_calls(samples: int, device: str, dtype: torch.dtype) -> None:
    case = packed(samples)
    on = count(case, True, device, dtype, "flash")
    off = count(case, False, device, dtype, "flash")
    assert len(off.names) + 20 < len(on.names) <= len(off.names) + MORE_FOR_AIA, on.names


def test_packed_samples_cost_no_calls_of_their_own() -> None:
    """On CUDA they are one call of the kernel, on a CPU at most three batches."""
    for (device, dtype), most in zip(PATHS, (12, 12 + 3 * 15), strict=True):
        found = [len(count(packed(n), False, device, dtype, "flash").names) for n in (1, 12, 200)]
        assert max(found) <= most, found


def test_a_sequence_of_one_sample_is_not_copied() -> None:
    case = make_case([[DRAWN]], padding=0)
    calls = count(case, False, *PATHS[0], "flash")
    kernels = [name for name in calls.names if "flash" in name]
    assert len(kernels) == 2 and len(calls.names) <= 4, calls.names


@pytest.mark.parametrize("method", ["flash"])
def test_no_layer_waits_for_the_device(method: str) -> None:
    calls = count(packed(6), True, *PATHS[0], method)
    assert calls.waits == []


def test_the_counter_sees_a_wait() -> None:
    with Calls() as calls:
        x = torch.ones(3)
        assert x.nonzero().sum().item() == 3
        x.to("meta")
    names = [name.split(".")[0] for name in calls.waits]
    assert names == ["nonzero", "_local_scalar_dense", "_to_copy"]
