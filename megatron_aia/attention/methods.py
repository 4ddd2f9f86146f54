"""The attention methods of AIA: what each one needs, and which one a run takes.

A method is a function ``(query, key, value, layout, scale) -> (output, sums)``, documented at
:func:`megatron_aia.attention.eager.attend`. All of them run the same attention. Their sums are the
triple sums of Eq. 1: exact for all but ``sampled``, which estimates them without bias.

    eager      eager.py      holds every map; the reference
    flash      rectangle.py  a flash kernel, and the queries x keys part of the map in blocks
    fused      fused.py      one Triton kernel; experimental, only by name
    sampled    sampled.py    some queries a head, beside any kernel
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from megatron_aia.attention import eager, fused, rectangle
from megatron_aia.attention.flash_ops import Backend
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.sampled import SampledIntensity

Attend = Callable[[Tensor, Tensor, Tensor, AttentionLayout, float], tuple[Tensor, Tensor]]

AskedBackend = Literal["auto", "flash", "flash3", "flash4", "cudnn"]
"""``--attention-backend``."""

METHODS = ("eager", "flash", "fused", "sampled")

_LARGEST_HEAD_OF_CUDNN = 128
"""Channels; its backward has no larger ones for equal heads of queries and values."""


@dataclass(frozen=True)
class Machine:
    """What a method has to run on."""

    device_type: str
    """``cpu`` or ``cuda``."""
    dtype: torch.dtype
    """Precision of the activations."""
    head_size: int
    """Channels of a head."""
    capability: tuple[int, int] = (0, 0)
    """Compute capability of the GPU; not read on a CPU."""
    has_triton: bool = False
    """Triton is installed and runs on the device."""
    has_cudnn_attention: bool = False
    """cuDNN has an attention for this GPU that PyTorch calls."""
    flash_packages: tuple[str, ...] = ()
    """``flash3`` and ``flash4`` where they are installed."""
    attends_in_fp8: bool = False
    """The attention is Transformer Engine's FP8 kernel, beside which only ``sampled`` measures."""


@dataclass(frozen=True)
class Method:
    """A method that was chosen, and all it needs to be built for a layer."""

    name: str
    """One of :data:`METHODS`."""
    reason: str
    """Why it was taken; for the log."""
    sampled_queries: int = 64
    """Queries a head and term that ``sampled`` measures."""
    seed: int = 0
    """Of the queries that ``sampled`` draws."""
    backend: Backend = "flash"
    """Kernel that ``flash`` and ``sampled`` attend with."""

    def __str__(self) -> str:
        drawn = f", {self.sampled_queries} queries a head" if self.name == "sampled" else ""
        return f"{self.name}{drawn}: {self.reason}"

    def build(self, layer: int, first_head: int) -> Attend:
        """Return the function of one layer.

        Args:
            layer: 0-based layer of the whole model.
            first_head: the first query head of this tensor-parallel rank.
        """
        if self.name == "sampled":
            return self.build_sampled(layer, first_head).attend
        if self.name == "flash":
            return partial(rectangle.attend, backend=self.backend)
        return {"eager": eager, "fused": fused}[self.name].attend

    def build_sampled(self, layer: int, first_head: int) -> SampledIntensity:
        """Return what samples the queries of one layer, beside another attention."""
        assert self.name == "sampled", self.name
        return SampledIntensity(self.sampled_queries, self.seed, layer, first_head, self.backend)


DEFAULT_METHOD = Method("flash", "the default")


def choose_method(
    name: str,
    machine: Machine,
    sampled_queries: int = 64,
    seed: int = 0,
    backend: AskedBackend = "auto",
) -> Method:
    """Choose how attention and intensities are computed.

    Args:
        name: ``auto`` or a name of :data:`METHODS`.
        machine: what it has to run on.
        sampled_queries: ``--aia-sampled-queries``.
        seed: ``--seed``.
        backend: ``--attention-backend``.

    Raises:
        ValueError: the method does not exist, or it or the backend cannot run on this machine.
    """
    if name not in ("auto", *METHODS):
        known = ", ".join(METHODS[:-1])
        raise ValueError(
            f"--aia-attention {name} does not exist; pass auto, {known} or {METHODS[-1]}"
        )
    if machine.dtype == torch.float16:
        raise ValueError(
            "AIA cannot train in float16, where its gradients are below the smallest number; "
            "pass --bf16"
        )
    if machine.attends_in_fp8:
        if name not in ("auto", "sampled"):
            raise ValueError(
                f"--aia-attention {name} cannot measure beside --fp8-dot-product-attention; "
                "pass sampled"
            )
        because = "queries are measured beside Transformer Engine's FP8 attention"
        return Method("sampled", because, sampled_queries, seed)
    if name != "auto":
        obstacle = _obstacle(name, machine)
        if obstacle:
            raise ValueError(f"--aia-attention {name} {obstacle}")
        kernel = _choose_backend(backend, machine)
        return Method(name, "asked for by --aia-attention", sampled_queries, seed, kernel)
    obstacle = _obstacle("flash", machine)
    if obstacle is None:
        kernel = _choose_backend(backend, machine)
        where = (
            "cuDNN's kernel" if kernel == "cudnn" else f"the flash kernel of {machine.device_type}"
        )
        return Method("flash", f"exact beside {where}", sampled_queries, seed, kernel)
    return Method("eager", f"exact with whole maps, because flash {obstacle.split(';')[0]}")


def _choose_backend(asked: AskedBackend, machine: Machine) -> Backend:
    """Return the kernel to attend with: cuDNN's where it runs, which is the fastest on Hopper."""
    can_run_cudnn = machine.has_cudnn_attention and machine.head_size <= _LARGEST_HEAD_OF_CUDNN
    if asked == "auto":
        return "cudnn" if can_run_cudnn else "flash"
    if asked == "cudnn" and not can_run_cudnn:
        raise ValueError(
            "--attention-backend cudnn needs a GPU of compute capability 9.0, cuDNN 9.15 and a "
            f"head size of at most {_LARGEST_HEAD_OF_CUDNN}; pass auto"
        )
    if asked not in ("flash", "cudnn", *machine.flash_packages):
        raise ValueError(
            f"--attention-backend {asked} needs a GPU of compute capability 9.0, the flash-attn "
            "package of that generation and PyTorch 2.10; install it, or pass auto"
        )
    return asked


def _obstacle(name: str, machine: Machine) -> str | None:
    """Return why a method cannot run, after its name, with a remedy; None if it can."""
    if name == "eager":
        return None
    return _obstacle_of_fused(machine) if name == "fused" else _obstacle_of_flash(machine)


def _obstacle_of_fused(machine: Machine) -> str | None:
    if not machine.has_triton:
        return (
            "needs the package triton and a GPU (or TRITON_INTERPRET=1, for tests); "
            "pip install triton, or pass --aia-attention auto"
        )
    if machine.device_type == "cpu" and machine.dtype == torch.bfloat16:
        return (
            "needs a GPU for bfloat16, of which Triton's interpreter multiplies the bits; "
            "pass --aia-attention auto"
        )
    if machine.dtype == torch.float64 or machine.head_size > 128:
        shown = str(machine.dtype).removeprefix("torch.")
        return (
            "needs float32 or bfloat16 and a head size of at most 128, not "
            f"{shown} and {machine.head_size}; pass --aia-attention auto"
        )
    return _too_old(machine)


def _obstacle_of_flash(machine: Machine) -> str | None:
    """Return what keeps PyTorch's flash kernel from running: flash and sampled call it."""
    if machine.device_type == "cpu":
        return None
    if machine.dtype != torch.bfloat16:
        shown = str(machine.dtype).removeprefix("torch.")
        return f"needs bfloat16 on cuda, not {shown}; pass --bf16 or --aia-attention eager"
    if machine.head_size % 8 or machine.head_size > 256:
        return (
            f"needs a head size that is a multiple of 8 and at most 256, not {machine.head_size}; "
            "pass --aia-attention eager, or change --kv-channels"
        )
    return _too_old(machine)


def _too_old(machine: Machine) -> str | None:
    if machine.device_type == "cuda" and machine.capability < (8, 0):
        shown = ".".join(map(str, machine.capability))
        return f"needs a GPU of compute capability 8.0, not {shown}; pass --aia-attention eager"
    return None
