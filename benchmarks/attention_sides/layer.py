"""One attention layer, its terms, and the ways to compute it."""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.loss import AIALoss
from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import AIA_TASKS, AIATerm, Segment, Task
from megatron_aia.attention import fused, rectangle
from megatron_aia.attention.flash_ops import Backend
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.sampled import SampledIntensity
from megatron_aia.runtime.device import device, has_cuda, has_cudnn_attention, has_triton

Run = Callable[[Tensor, Tensor, Tensor, AttentionLayout, float], tuple[Tensor, Tensor | None]]

PROMPT, ANSWER, JANUS_IMAGE = 100, 150, 576
SHORTEST = {"generation": 512, "understanding": 512, "packed": 2048}
LONGEST_EAGER = 2048
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OBJECTIVE = AIALoss(
    LayerTargets(*({task: np.full(1, 0.1) for task in AIA_TASKS} for _ in range(2))),
    dict.fromkeys(AIA_TASKS, 40.0),
    num_layers=32,
    num_active=64,
)
FLASH, CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION


def plain(
    backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float
) -> tuple[Tensor, None]:
    outputs = []
    with sdpa_kernel(backend):
        for segment in layout.segments:
            part = [x[:, :, segment.start : segment.stop] for x in (q, k, v)]
            outputs.append(
                scaled_dot_product_attention(*part, is_causal=True, scale=scale, enable_gqa=True)
            )
    return torch.cat(outputs, dim=2), None


def eager(
    q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend as Transformers' eager attention does, which the released code of AIA reads."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    barred = ~layout.attention_mask(q.device).unsqueeze(1)
    mask = torch.zeros(barred.shape, dtype=q.dtype, device=q.device)
    mask.masked_fill_(barred, torch.finfo(q.dtype).min)
    scores = q @ k.transpose(2, 3) * scale + mask
    probability = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    sums = []
    for segment in layout.segments:
        for term in segment.terms:
            rows = slice(int(term.queries[0]), int(term.queries[-1]) + 1)
            keys = slice(int(term.keys[0]), int(term.keys[-1]) + 1)
            sums.append(probability[segment.batch_index, :, rows, keys].float().sum())
    return probability @ v, torch.stack(sums)


def generation(start: int, length: int, prompt: int = PROMPT) -> Segment:
    keys = np.arange(start, start + prompt)
    rows = np.arange(start + prompt, start + length - 1)
    return Segment(0, start, start + length, (AIATerm(Task.GENERATION, rows, keys),), start)


def understanding(start: int, length: int, answer: int = ANSWER) -> Segment:
    keys = np.arange(start + 1, start + length - answer)
    rows = np.arange(start + length - answer, start + length)
    return Segment(0, start, start + length, (AIATerm(Task.UNDERSTANDING, rows, keys),), start)


def packed(length: int) -> list[Segment]:
    """Janus's samples in turn, as many as fit; the rest of the row is one more."""
    segments: list[Segment] = []
    for number in range(length // (JANUS_IMAGE + ANSWER)):
        start = number * (JANUS_IMAGE + ANSWER)
        make = understanding if number % 2 else generation
        segments.append(make(start, JANUS_IMAGE + ANSWER))
    last = segments.pop()
    return [*segments, generation(last.start, length - last.start)]


SHAPES: dict[str, Callable[[int], list[Segment]]] = {
    "generation": lambda length: [generation(0, length)],
    "understanding": lambda length: [understanding(0, length)],
    "packed": packed,
}


class Layer:
    """Tensors and terms of one attention layer, and one step of a method on them."""

    def __init__(self, shape: str, length: int, options: argparse.Namespace) -> None:
        self.segments = tuple(SHAPES[shape](length))
        self.layout = AttentionLayout(self.segments, length, 1)
        generator = torch.Generator(device()).manual_seed(length)
        make = partial(
            torch.randn, device=device(), dtype=DTYPES[options.dtype], generator=generator
        )
        sizes = [options.heads, options.groups, options.groups, options.heads]
        tensors = [make(length, 1, heads, options.head_size).permute(1, 2, 0, 3) for heads in sizes]
        self.inputs = [x.requires_grad_() for x in tensors[:3]]
        self.grad_output = tensors[3] / (options.heads * length)
        lengths = [segment.stop - segment.start for segment in self.segments]
        # Seven products of n x n / 2 by the head size: two in forward, five in backward.
        self.operations = 7 * options.heads * options.head_size * sum(n * n for n in lengths)

    def step(self, run: Run) -> None:
        """Run forward and backward, the reduction and gradient of the intensities included."""
        query, key, value = self.inputs
        aia = AIAContext(self.segments, OBJECTIVE, num_heads=query.shape[1])
        output, sums = run(query, key, value, self.layout, query.shape[-1] ** -0.5)
        if sums is not None:
            output = aia.attach(output, sums, 0)
        output.backward(self.grad_output)
        for x in self.inputs:
            x.grad = None


def off(
    q: Tensor, k: Tensor, v: Tensor, layout: AttentionLayout, scale: float, backend: Backend
) -> tuple[Tensor, None]:
    """Attend as a run with AIA off does: the same kernel and calls, nothing measured."""
    output, _ = rectangle.attend(q, k, v, layout.without_terms(), scale, backend)
    return output, None


def methods(shape: str, length: int, sampled_queries: int) -> dict[str, tuple[Run, str]]:
    """Return what runs in a round, in order, each with the name of what it is compared with."""
    found: dict[str, tuple[Run, str]] = {}
    backends: list[tuple[Backend, SDPBackend]] = [("flash", FLASH)]
    if has_cudnn_attention():
        backends.insert(0, ("cudnn", CUDNN))
    for backend, of_torch in backends:
        name = f"AIA off ({backend})"
        found[name] = (partial(off, backend=backend), name)
        found[f"again ({backend})"] = (partial(off, backend=backend), name)
        found[f"PyTorch's ({backend})"] = (partial(plain, of_torch), name)
        found[f"AIA, flash ({backend})"] = (partial(rectangle.attend, backend=backend), name)
        sampled = SampledIntensity(sampled_queries, 0, 0, backend=backend)
        found[f"AIA, {sampled_queries} sampled queries ({backend})"] = (sampled.attend, name)
    first = next(iter(found))
    if has_cuda() and has_triton():
        found["AIA, fused"] = (fused.attend, first)
    if length <= LONGEST_EAGER and shape != "packed":
        found["released eager"] = (eager, first)
    return found
