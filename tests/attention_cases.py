"""Micro-batches for tests of attention: role codes laid out in rows, with random tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_aia.aia.roles import Segment, Task, find_terms, key_code, query_code

PLAIN = 0
GEN_KEY, GEN_ROW = key_code(Task.GENERATION), query_code(Task.GENERATION)
UND_KEY, UND_ROW = key_code(Task.UNDERSTANDING), query_code(Task.UNDERSTANDING)

GENERATION = [GEN_KEY] * 5 + [PLAIN] + [GEN_ROW] * 4 + [PLAIN] + [GEN_ROW] * 4 + [PLAIN]
UNDERSTANDING = [PLAIN] + [UND_KEY] * 6 + [PLAIN] * 3 + [UND_ROW] * 4
ONE_TOKEN_ANSWER = [UND_KEY] * 3 + [PLAIN] + [UND_ROW]
TEXT = [PLAIN] * 7
ONE_TOKEN_SAMPLE = [PLAIN]
ROWS_WITHOUT_KEYS = [PLAIN] * 3 + [UND_ROW] * 3
KEYS_ONLY_AFTER_ROWS = [PLAIN] + [UND_ROW] * 3 + [UND_KEY] * 3
BOTH_TASKS = [GEN_KEY] * 4 + [GEN_ROW + UND_KEY] * 6 + [PLAIN] + [UND_ROW] * 3
ROWS_AMONG_THEIR_KEYS = [UND_ROW + UND_KEY] * 4 + [PLAIN] + [UND_ROW] * 2
INTERLEAVED = [UND_KEY, UND_KEY, UND_ROW, UND_ROW, PLAIN, UND_KEY, UND_KEY, UND_KEY, UND_ROW] * 2


@dataclass
class Case:
    """One micro-batch, tensors in float64 and in the layout of the attention methods."""

    segments: tuple[Segment, ...]
    query: Tensor
    """``[b, h, s, d]``."""
    key: Tensor
    value: Tensor
    grad_output: Tensor
    """dO of a loss that is linear in the output; nonzero in padding too."""

    @property
    def scale(self) -> float:
        return self.query.shape[-1] ** -0.5

    def inputs(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
        """Leaves with gradient, laid out as megatron-core's arrive: views of ``[s, b, ...]``."""
        tensors = (self.query, self.key, self.value)
        views = [x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for x in tensors]
        return [x.to(device, dtype).detach().requires_grad_() for x in views]


def make_case(
    rows: Sequence[Sequence[Sequence[int]]],
    heads: int = 4,
    groups: int = 2,
    head_size: int = 16,
    padding: int = 3,
    seed: int = 0,
) -> Case:
    """Lay samples (lists of role codes) out in rows; the longest row gets ``padding`` on top."""
    segments = []
    for b, samples in enumerate(rows):
        start = 0
        for sample in samples:
            terms = find_terms(np.array(sample, np.uint8), start)
            segments.append(Segment(b, start, start + len(sample), terms, len(segments)))
            start += len(sample)
    length = max(segment.stop for segment in segments) + padding
    generator = torch.Generator().manual_seed(seed)

    def random(num_heads: int) -> Tensor:
        # Rounded to bfloat16, so that every precision sees the same inputs.
        shape = (len(rows), num_heads, length, head_size)
        return torch.randn(shape, generator=generator).bfloat16().double()

    return Case(tuple(segments), 2 * random(heads), random(groups), random(groups), random(heads))
