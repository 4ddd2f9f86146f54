"""Ways in which attention kernels are silently wrong about intensities, one test each.

Further traps have their test where the rest of their subject is:

- rows without output gradient, for D-injection: ``test_attention_exact.py``, DEGENERATE
- rows that see no key: ``test_attention_exact.py``, ``test_attention_fused.py``
- recompute counts twice or not at all, sampled rows change: ``test_attention_core.py``,
  ``test_attention_sampled.py``, ``tests/dist/test_sampled_layouts.py``
- Huber before the all-reduce of heads: ``test_inject.py``, ``tests/dist/test_layout_equality.py``
- positions shifted by one in the released code: ``test_roles.py``, ``test_emu3_sample_encoder.py``
- bfloat16 in Triton's interpreter: ``test_attention_methods.py``
- tiles that spill registers: ``test_fused_compiles.py``
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attention_cases as cases
import pytest
import torch
from attention_cases import Case, make_case
from attention_checks import ALL_ROWS, METHODS, run, run_reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_aia.attention import eager, flash_ops, rectangle
from megatron_aia.attention.core_attention import AIACoreAttention
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.sampled import SampledIntensity

SAMPLE = [cases.GEN_KEY] * 8 + [cases.PLAIN] + [cases.GEN_ROW] * 30


def long_case() -> Case:
    """300 tokens, of which no rectangle and no block of sampled queries is a large part."""
    sample = [cases.GEN_KEY] * 10 + [cases.PLAIN] * 250 + [cases.GEN_ROW] * 40
    return make_case([[sample]], heads=2, groups=1, padding=0)


class Watch(TorchDispatchMode):
    """Keeps the operators that run and the largest tensor that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators.add(func.name().removeprefix("aten::"))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return result


def test_the_log_sum_exp_of_a_kernel_has_no_gradient_and_none_is_taken_from_it() -> None:
    case = make_case([[SAMPLE]], padding=0)
    _, lse, _ = flash_ops.forward(*case.inputs(), case.scale)
    assert not lse.requires_grad, "if it had one, rectangle could use it"
    case.grad_output = torch.zeros_like(case.grad_output)
    expected = run_reference(case, torch.ones(1))
    assert expected[2].norm() > 1e-3 and expected[3].norm() > 1e-3
    for attend in METHODS.values():
        for got, want in zip(
            run(attend, case, torch.ones(1), torch.float64), expected, strict=True
        ):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("method", ["flash", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_flash_kernel_runs_and_no_map_is_made(method: str, dtype: torch.dtype) -> None:
    """PyTorch's own choice of a kernel falls back to whole maps without a word."""
    case = long_case()
    attend: Callable[..., Any] = METHODS[method]
    if method == "sampled":
        attend = SampledIntensity(4, 0, 0).attend
    map_elements = case.query.shape[2] ** 2
    with Watch() as watch:
        run(attend, case, torch.ones(1), dtype)
    attention = {name for name in watch.operators if "scaled_dot_product" in name}
    flash = "_scaled_dot_product_flash_attention_for_cpu"
    assert attention == {flash, f"{flash}_backward"}
    assert watch.largest < map_elements / 2
    with Watch() as watch:
        run(eager.attend, case, torch.ones(1), dtype)
    assert watch.largest >= map_elements, "the watch sees a map where there is one"


def test_the_kernels_of_cuda_are_called_as_they_are_declared() -> None:
    """Without a GPU: on the device meta an operator checks its arguments and computes nothing."""
    query = torch.empty(1, 8, 40, 128, dtype=torch.bfloat16, device="meta")
    key, value = (torch.empty(1, 2, 64, 128, dtype=torch.bfloat16, device="meta") for _ in "kv")
    with Watch() as watch:
        output, lse, extras = flash_ops.forward(query, key, value, 0.1)
        gradients = flash_ops.backward(output, query, key, value, output, lse, extras, 0.1)
    assert [x.shape for x in gradients] == [query.shape, key.shape, value.shape]
    assert output.dtype == torch.bfloat16 and lse.shape == query.shape[:3]
    flash = "_scaled_dot_product_flash_attention"
    assert {flash, f"{flash}_backward"} <= watch.operators


def test_the_shift_reaches_nothing_but_d() -> None:
    """A kernel in which ``out`` fed anything but D would change dV, which sums do not touch."""
    case = make_case([[SAMPLE]])
    with_sums = run(rectangle.attend, case, torch.full((1,), 100.0), torch.float64)
    without = run(rectangle.attend, case, torch.zeros(1), torch.float64)
    torch.testing.assert_close(with_sums[4], without[4], rtol=1e-12, atol=1e-12)
    assert (with_sums[2] - without[2]).norm() > 1


def test_attention_sinks_are_refused() -> None:
    config = SimpleNamespace(
        context_parallel_size=1,
        tensor_model_parallel_size=1,
        num_attention_heads=2,
        attention_dropout=0.0,
        kv_channels=8,
        softmax_type="learnable",
    )
    with pytest.raises(AssertionError, match="attention sink: learnable"):
        AIACoreAttention(config, layer_number=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "survives"), [(torch.float16, False), (torch.bfloat16, True), (torch.float32, True)]
)
def test_the_gradient_of_a_real_run_vanishes_in_float16(dtype: torch.dtype, survives: bool) -> None:
    """lambda delta / (L A H |Q|) of Emu3: 40 x 0.2 / (32 x 64 x 32 x 8100)."""
    case = make_case([[SAMPLE]])
    case.grad_output = torch.zeros_like(case.grad_output)
    strength = torch.tensor([40 * 0.2 / (32 * 64 * 32 * 8100)])
    _, _, grad_query, grad_key, _ = run(eager.attend, case, strength, dtype)
    for gradient in (grad_query, grad_key):
        assert (gradient.abs().max() > 0) == survives


def test_a_sample_normalises_its_own_scores() -> None:
    """A log-sum-exp of quantised queries and keys does not belong to the scores of others."""
    everything = [cases.UND_ROW + cases.UND_KEY] * 20
    case = make_case([[everything]], padding=0)
    layout = AttentionLayout(case.segments, 20, 1)
    query, key, _ = case.inputs(torch.bfloat16)
    for rows in (3, ALL_ROWS):
        sums = SampledIntensity(rows, 0, 0).sums(query, key, layout, case.scale)
        torch.testing.assert_close(sums, torch.tensor([20.0 * case.query.shape[1]]))
        sums.sum().backward()
    assert query.grad is not None and query.grad.abs().max() < 1e-6
