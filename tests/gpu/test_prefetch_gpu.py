"""Where there is a GPU, workers' micro-batches wait in page-locked memory."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from toy_data import toy_batches, toy_samples, write_folder

from megatron_aia.data.prefetch import Prefetcher
from megatron_aia.data.targets import NEXT_TOKEN

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_prefetched_batches_are_pinned_and_the_same(tmp_path: Path) -> None:
    samples = [*toy_samples("generation", 17), *toy_samples("understanding", 19)]
    folder = write_folder(tmp_path, samples)
    torch.zeros(1, device="cuda")  # workers are forked from a process that uses the GPU
    prefetcher, inline = Prefetcher(toy_batches(folder), 2), toy_batches(folder)
    for position in range(0, 48, 12):
        for found, expected in zip(prefetcher.step(position), inline.step(position), strict=True):
            assert found.tokens.is_pinned() and found.targets[NEXT_TOKEN].weights.is_pinned()
            assert torch.equal(found.tokens, expected.tokens)
            for name, column in vars(found.targets[NEXT_TOKEN]).items():
                assert torch.equal(column, getattr(expected.targets[NEXT_TOKEN], name))
    prefetcher.close()
