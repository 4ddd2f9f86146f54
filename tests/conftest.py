"""One thread a process: ranks share the cores, and forked ranks must not inherit a thread pool."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
