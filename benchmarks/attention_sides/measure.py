"""Time and memory of one call, on a CPU or a GPU."""

import time
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

from megatron_aia.runtime.device import device, has_cuda


def seconds(step: Callable[[], object]) -> float:
    """Time one call: CUDA events, or CPU time of this process."""
    if not has_cuda():
        start = time.process_time()
        step()
        return time.process_time() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    step()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3


def peak_bytes(step: Callable[[], None]) -> int:
    """Return the most memory that tensors made during one call take at a time."""
    if has_cuda():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return max(accumulate(size for _, size in sorted(changes, key=lambda change: change[0])))


def ceiling(dtype: torch.dtype) -> float:
    """Return the most operations a second that a large matrix product reaches here."""
    size = 8192 if has_cuda() else 1024
    factors = [torch.randn(size, size, dtype=dtype, device=device()) for _ in range(2)]
    product = torch.empty_like(factors[0])
    times = [seconds(partial(torch.mm, *factors, out=product)) for _ in range(10)]
    return 2 * size**3 / min(times[2:])
