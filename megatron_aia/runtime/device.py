"""The one place that asks which device there is, and which accelerated packages are installed."""

import importlib.metadata
import importlib.util
import os

import torch

ACCELERATED_PACKAGES = ("transformer-engine", "apex", "flash-attn", "triton")


def has_cuda() -> bool:
    """Return whether this process computes on a CUDA device."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Return the device of this process: its CUDA device, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")


def bind_device() -> None:
    """Take the CUDA device of this local rank; on a CPU, one thread a process unless asked."""
    if has_cuda():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        use_one_thread()


def use_one_thread() -> None:
    """Compute with one thread in this process, unless ``OMP_NUM_THREADS`` asks for another number.

    For processes that share a machine.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def worker_device(name: str, number: int) -> str:
    """Return the device of one of several worker processes: they take CUDA devices in turn.

    Args:
        name: ``cpu``, ``cuda``, or one CUDA device for all, as ``cuda:1``.
        number: of the worker, from 0.

    Raises:
        ValueError: there is no CUDA device.
    """
    if name.startswith("cuda") and not has_cuda():
        raise ValueError(f"--device {name}: there is no CUDA device here; use --device cpu")
    return f"cuda:{number % torch.cuda.device_count()}" if name == "cuda" else name


def collective_backend() -> str:
    """Return the name of the ``torch.distributed`` backend for this device."""
    return "nccl" if has_cuda() else "gloo"


def has_transformer_engine() -> bool:
    """Return whether Transformer Engine can run here: it is installed and there is a GPU."""
    return has_cuda() and _version("transformer-engine") is not None


def has_triton() -> bool:
    """Return whether Triton kernels can run here: compiled on a GPU, or interpreted for tests."""
    runs = has_cuda() or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and importlib.util.find_spec("triton") is not None


def describe() -> str:
    """Return one line for the log: device, torch, and the accelerated packages installed."""
    where = torch.cuda.get_device_name() if has_cuda() else "CPU"
    versions = {name: _version(name) for name in ACCELERATED_PACKAGES}
    packages = [f"{name} {version or 'not installed'}" for name, version in versions.items()]
    return ", ".join([where, f"torch {torch.__version__}", *packages])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
