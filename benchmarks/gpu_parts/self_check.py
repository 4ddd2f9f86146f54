"""Every attention method, kernel and precision of this machine, against float64."""

from typing import Any

import torch

from megatron_aia.aia.roles import Segment
from megatron_aia.attention import self_check
from megatron_aia.attention.flash_ops import Backend
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.methods import Machine, Method, choose_method
from megatron_aia.attention.rectangle import attend
from megatron_aia.attention.self_check import TOLERANCES, AttentionSetting, largest_error
from megatron_aia.runtime.device import (
    compute_capability,
    device,
    flash_attention_packages,
    has_cudnn_attention,
    has_triton,
    use_flash_attention,
)

SHAPES = {"Emu3-8B, TP 4": (8, 2, 128), "Janus-Pro-7B, TP 4": (8, 8, 128), "small": (8, 2, 64)}
LONG = 8192 if device().type == "cuda" else 512


def run() -> dict[str, Any]:
    self_check._reference_dtype = lambda dtype: torch.float64  # type: ignore[assignment]
    errors: dict[str, float] = {}
    raised: dict[str, str] = {}
    for method, dtype in _methods():
        use_flash_attention(method.backend)
        for shape, (heads, groups, size) in SHAPES.items():
            for shared in (False, True):
                name = f"{method.name} on {method.backend}, {dtype}, {shape}"
                name = name.replace("torch.", "") + (", context parallel" if shared else "")
                try:
                    setting = AttentionSetting(device(), dtype, heads, groups, size, shared)
                    errors[name] = largest_error(method, setting) / TOLERANCES[dtype]
                except RuntimeError as error:
                    raised[name] = str(error).strip().splitlines()[0][:200]
    worst = max(errors, key=lambda name: errors[name])
    long = _long_sample()
    wrong = [name for name, error in errors.items() if not error <= 1]
    lines = [f"{len(errors)} settings, worst at {errors[worst]:.2f} of its tolerance: {worst}"]
    lines += [f"raises: {name}: {text}" for name, text in raised.items()]
    lines += [f"wrong: {name}" for name in wrong]
    lines += [f"{LONG} tokens, cudnn against flash: {error:.1e}" for error in long]
    ok = not wrong and not raised and all(error < TOLERANCES[torch.bfloat16] for error in long)
    return {"ok": ok, "lines": lines, "errors_in_tolerances": errors, "raised": raised}


def _methods() -> list[tuple[Method, torch.dtype]]:
    backends: list[Backend] = ["flash", *flash_attention_packages()]  # type: ignore[list-item]
    backends += ["cudnn"] if has_cudnn_attention() else []
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        machine = Machine(
            device().type,
            dtype,
            128,
            compute_capability(),
            has_triton(),
            has_cudnn_attention(),
            flash_attention_packages(),
        )
        for name in ("eager", "flash", "sampled", "fused"):
            for backend in backends if name in ("flash", "sampled") else backends[:1]:
                try:
                    found.append((choose_method(name, machine, backend=backend), dtype))
                except ValueError:
                    continue  # it is not for this machine
    return found


def _long_sample() -> list[float]:
    """Return how far cuDNN is from flash at the length of a real sample: it may plan otherwise."""
    if not has_cudnn_attention():
        return []
    layout = AttentionLayout([Segment(0, 0, LONG)], LONG, 1)
    torch.manual_seed(0)
    inputs = [
        torch.randn(LONG, 1, h, 128, device=device(), dtype=torch.bfloat16).permute(1, 2, 0, 3)
        for h in (8, 2, 2)
    ]
    results = []
    for backend in ("flash", "cudnn"):
        leaves = [x.detach().requires_grad_() for x in inputs]
        output, _ = attend(*leaves, layout, 128**-0.5, backend)  # type: ignore[arg-type]
        results.append([output, *torch.autograd.grad(output, leaves, torch.ones_like(output))])
    return [
        float((a.float() - b.float()).norm() / a.float().norm())
        for a, b in zip(*results, strict=True)
    ]
