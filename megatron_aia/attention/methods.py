"""The attention methods of AIA: what each one needs, and which one a run takes.

A method is a function ``(query, key, value, layout, scale) -> (output, sums)``, documented at
:func:`megatron_aia.attention.dense.attend`. All of them run the same attention. Their sums are the
triple sums of Eq. 1: exact for all but ``probe``, which estimates them without bias.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_aia.attention import dense, fused, rectangle
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.probe import Probe

Attend = Callable[[Tensor, Tensor, Tensor, AttentionLayout, float], tuple[Tensor, Tensor]]

METHODS = ("dense", "rectangle", "fused", "probe")


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


@dataclass(frozen=True)
class Method:
    """A method that was chosen, and all it needs to be built for a layer."""

    name: str
    """One of :data:`METHODS`."""
    reason: str
    """Why it was taken; for the log."""
    probe_rows: int = 64
    """Rows a head and term that ``probe`` measures."""
    seed: int = 0
    """Of the rows that ``probe`` draws."""

    def __str__(self) -> str:
        rows = f", {self.probe_rows} rows a head" if self.name == "probe" else ""
        return f"{self.name}{rows}: {self.reason}"

    def build(self, layer: int, first_head: int) -> Attend:
        """Return the function of one layer.

        Args:
            layer: 0-based layer of the whole model.
            first_head: the first query head of this tensor-parallel rank.
        """
        if self.name == "probe":
            return Probe(self.probe_rows, self.seed, layer, first_head).attend
        return {"dense": dense, "rectangle": rectangle, "fused": fused}[self.name].attend


DEFAULT_METHOD = Method("rectangle", "the default")


def choose_method(name: str, machine: Machine, probe_rows: int = 64, seed: int = 0) -> Method:
    """Choose how attention and intensities are computed.

    Args:
        name: ``auto`` or a name of :data:`METHODS`.
        machine: what it has to run on.
        probe_rows: ``--aia-probe-rows``.
        seed: ``--seed``.

    Raises:
        ValueError: the method does not exist, or cannot run on this machine.
    """
    if name not in ("auto", *METHODS):
        known = ", ".join(METHODS[:-1])
        raise ValueError(f"--aia-method {name} does not exist; pass auto, {known} or {METHODS[-1]}")
    if machine.dtype == torch.float16:
        raise ValueError(
            "AIA cannot train in float16, where its gradients are below the smallest number; "
            "pass --bf16"
        )
    if name != "auto":
        obstacle = _obstacle(name, machine)
        if obstacle:
            raise ValueError(f"--aia-method {name} {obstacle}")
        return Method(name, "asked for by --aia-method", probe_rows, seed)
    obstacle = _obstacle("rectangle", machine)
    if obstacle is None:
        return Method("rectangle", f"exact beside the flash kernel of {machine.device_type}")
    because = f"because rectangle {obstacle.split(';')[0]}"
    if _obstacle("fused", machine) is None:
        return Method("fused", f"exact in one kernel, {because}")
    return Method("dense", f"exact with whole maps, {because}")


def _obstacle(name: str, machine: Machine) -> str | None:
    """Return why a method cannot run, after its name, with a remedy; None if it can."""
    if name == "dense":
        return None
    return _obstacle_of_fused(machine) if name == "fused" else _obstacle_of_flash(machine)


def _obstacle_of_fused(machine: Machine) -> str | None:
    if not machine.has_triton:
        return (
            "needs the package triton and a GPU (or TRITON_INTERPRET=1, for tests); "
            "pip install triton, or pass --aia-method auto"
        )
    if machine.device_type == "cpu" and machine.dtype == torch.bfloat16:
        return (
            "needs a GPU for bfloat16, of which Triton's interpreter multiplies the bits; "
            "pass --aia-method auto"
        )
    if machine.dtype == torch.float64 or machine.head_size > 128:
        shown = str(machine.dtype).removeprefix("torch.")
        return (
            "needs float32 or bfloat16 and a head size of at most 128, not "
            f"{shown} and {machine.head_size}; pass --aia-method auto"
        )
    return _too_old(machine)


def _obstacle_of_flash(machine: Machine) -> str | None:
    """Return what keeps PyTorch's flash kernel from running: rectangle and probe call it."""
    if machine.device_type == "cpu":
        return None
    if machine.dtype != torch.bfloat16:
        shown = str(machine.dtype).removeprefix("torch.")
        return f"needs bfloat16 on cuda, not {shown}; pass --bf16 or --aia-method dense"
    if machine.head_size % 8 or machine.head_size > 256:
        return (
            f"needs a head size that is a multiple of 8 and at most 256, not {machine.head_size}; "
            "pass --aia-method dense, or change --kv-channels"
        )
    return _too_old(machine)


def _too_old(machine: Machine) -> str | None:
    if machine.device_type == "cuda" and machine.capability < (8, 0):
        shown = ".".join(map(str, machine.capability))
        return f"needs a GPU of compute capability 8.0, not {shown}; pass --aia-method dense"
    return None
