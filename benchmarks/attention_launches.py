"""What AIA asks of a GPU in one attention layer, counted without one: kernels, bytes, products.

    python benchmarks/attention_launches.py

The layer runs forward and backward on PyTorch's device ``meta``, which takes every call and
computes nothing. A call of ``aten`` that makes no view is a kernel; its bytes are those of its
inputs and outputs, an upper bound where the L2 cache holds them. Attention kernels themselves are
the same with AIA on and off and are left out of the bytes. Counted is the second layer of a
micro-batch.
"""

from types import SimpleNamespace
from typing import Any

import torch
from attention_sides.layer import OBJECTIVE, SHAPES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.roles import without_terms
from megatron_aia.attention.core_attention import AIACoreAttention
from megatron_aia.attention.methods import Method

LENGTH, CHANNELS = 8192, 128
CASES = {
    "Emu3-8B, one image, TP 1": ("generation", 32, 8),
    "Emu3-8B, one image, TP 4": ("generation", 8, 2),
    "Emu3-8B, one question, TP 4": ("understanding", 8, 2),
    "Janus-Pro-7B, 11 packed, TP 1": ("packed", 32, 32),
    "Janus-Pro-7B, 11 packed, TP 4": ("packed", 8, 8),
}
BANDWIDTH = 2.9e12
"""Bytes a second that an H100 reaches, for the column of milliseconds."""


class Count(TorchDispatchMode):
    """Counts kernels, their bytes, and the operations of batched products."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.bytes = self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        self.kernels += 1
        name = func.name()
        if "flash_attention" in name or "empty" in name:
            return result
        parts = [*args, *(result if isinstance(result, (list, tuple)) else [result])]
        flat = [x for p in parts for x in (p if isinstance(p, (list, tuple)) else [p])]
        tensors = {id(x): x for x in flat if isinstance(x, Tensor)}
        self.bytes += sum(x.numel() * x.element_size() for x in tensors.values())
        if name.startswith("aten::bmm"):
            self.operations += 2 * args[0].numel() * args[1].shape[-1]
        return result


def count(shape: str, heads: int, groups: int, measured: bool) -> Count:
    segments = tuple(SHAPES[shape](LENGTH))
    terms = segments if measured else without_terms(segments)
    aia = AIAContext(terms, OBJECTIVE if measured else None, heads)
    config: Any = SimpleNamespace(
        attention_dropout=0.0,
        num_attention_heads=heads,
        kv_channels=CHANNELS,
        context_parallel_size=1,
        tensor_model_parallel_size=1,
    )
    for number in range(2):
        layer = AIACoreAttention(config, number + 1, method=Method("flash", "counted"))
        inputs = [
            torch.empty(LENGTH, 1, h, CHANNELS, device="meta", dtype=torch.bfloat16)
            for h in (heads, groups, groups)
        ]
        query, key, value = (x.requires_grad_() for x in inputs)
        with Count() as counted:
            output = layer(query, key, value, None, attention_bias=aia)
            torch.autograd.grad(output, (query, key, value), torch.empty_like(output))
    return counted


def main() -> None:
    print(f"torch {torch.__version__}, {LENGTH} tokens, {CHANNELS} channels, bfloat16\n")
    print("| a layer | kernels off | on | GB of AIA | ms at 2.9 TB/s | GFLOP in bf16 |")
    print("|---|---|---|---|---|---|")
    for name, case in CASES.items():
        off, on = (count(*case, measured) for measured in (False, True))
        more = on.bytes - off.bytes
        print(
            f"| {name} | {off.kernels} | {on.kernels} | {more / 1e9:.2f} "
            f"| {1e3 * more / BANDWIDTH:.2f} | {on.operations / 1e9:.1f} |"
        )


if __name__ == "__main__":
    main()
