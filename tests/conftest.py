"""One thread a process: ranks share the cores, and forked ranks must not inherit a thread pool."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    # Triton reads it when a kernel is defined, so before any test imports one.
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)
