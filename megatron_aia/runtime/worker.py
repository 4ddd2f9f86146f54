"""Threads and devices of processes that share a machine. Imports torch only where it is in use."""

import os
import sys

from megatron_aia.runtime.optional import import_optional


def use_one_thread() -> None:
    """Compute with one thread in this process, unless ``OMP_NUM_THREADS`` asks for another number.

    A process that has not imported torch by now has no threads to limit.
    """
    torch = sys.modules.get("torch")
    if torch is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def worker_device(name: str, number: int) -> str:
    """Return the device of one of several worker processes: they take CUDA devices in turn.

    Args:
        name: ``cpu``, ``cuda``, or one CUDA device for all, as ``cuda:1``.
        number: of the worker, from 0.

    Raises:
        ValueError: there is no CUDA device.
    """
    if not name.startswith("cuda"):
        return name
    torch = import_optional("torch", "hf")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: there is no CUDA device here; use --device cpu")
    return f"cuda:{number % torch.cuda.device_count()}" if name == "cuda" else name
