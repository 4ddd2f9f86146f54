"""The one place that asks which device there is, and which accelerated packages are installed."""

import gc
import importlib.metadata
import importlib.util
import os
import resource

import torch

from megatron_aia.runtime.versions import megatron_core_version
from megatron_aia.runtime.worker import use_one_thread

# Asking whether there is a GPU must not start CUDA: what is set in the environment would come too
# late, and no process could be forked any more.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

_CUDNN_9_15 = 91500

_FLASH_PACKAGES = {
    "flash3": ("FA3", "flash_attn_interface"),
    "flash4": ("FA4", "flash_attn.cute.interface"),
}
"""PyTorch's names of them, and the modules it loads."""

ACCELERATED_PACKAGES = ("transformer-engine", "apex", "flash-attn", "triton")


def has_cuda() -> bool:
    """Return whether this process computes on a CUDA device."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Return the device of this process: its CUDA device, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")


def device_name() -> str:
    """Return what this process computes on: the name of its GPU, or CPU."""
    return torch.cuda.get_device_name() if has_cuda() else "CPU"


def memory_in_use() -> dict[str, float]:
    """Return bytes: of a GPU ``allocated`` and ``reserved``, the most since the last call, and its
    ``total``; of a CPU process ``resident``, the most since it started.
    """
    if not has_cuda():
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"resident": kibibytes * 1024.0}
    found = {
        "allocated": float(torch.cuda.max_memory_allocated()),
        "reserved": float(torch.cuda.max_memory_reserved()),
        "total": float(torch.cuda.get_device_properties(device()).total_memory),
    }
    torch.cuda.reset_peak_memory_stats()
    return found


def release_memory() -> None:
    """Give back the memory of what nobody holds any more, for other processes of this GPU."""
    gc.collect()
    if has_cuda():
        torch.cuda.empty_cache()


def send(tensor: torch.Tensor, to: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device, without waiting for what runs there."""
    if to.type == "cuda" and not tensor.is_cuda and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(to, non_blocking=True)


def compute_capability() -> tuple[int, int]:
    """Return the compute capability of this process's GPU; (0, 0) on a CPU."""
    return torch.cuda.get_device_capability() if has_cuda() else (0, 0)


def bind_device() -> None:
    """Take the CUDA device of this local rank; several processes on CPUs take a thread each."""
    if has_cuda():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    elif int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        use_one_thread()


def order_collectives(tensor_parallel_size: int) -> None:
    """Let tensor-parallel layers overlap their collectives with products, before CUDA starts.

    megatron-core starts a collective and then the product that hides it, and counts on a GPU that
    takes both in this order: one with a single queue. A value that the user has set stays.
    """
    if tensor_parallel_size > 1:
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def collective_backend() -> str:
    """Return the name of the ``torch.distributed`` backend for this device."""
    return "nccl" if has_cuda() else "gloo"


def has_transformer_engine() -> bool:
    """Return whether Transformer Engine can run here: it is installed and there is a GPU."""
    return has_cuda() and transformer_engine_version() is not None


def transformer_engine_version() -> str | None:
    """Return the installed version of Transformer Engine, or None."""
    return _version("transformer-engine")


def has_cudnn_attention() -> bool:
    """Return whether cuDNN has a fast attention for this GPU, by PyTorch's own rule."""
    version = torch.backends.cudnn.version() if has_cuda() else None
    return version is not None and version > _CUDNN_9_15 and compute_capability() >= (9, 0)


def flash_attention_packages() -> tuple[str, ...]:
    """Return which of ``flash3`` and ``flash4`` are installed for this GPU, Hopper or later.

    Found by module name alone: importing one takes seconds, and only a run that asks for it should.
    """
    if not has_cuda() or compute_capability() < (9, 0):
        return ()
    if not hasattr(torch.nn.attention, "activate_flash_attention_impl"):
        return ()
    return tuple(name for name, (_, module) in _FLASH_PACKAGES.items() if _has_module(module))


def use_flash_attention(name: str) -> None:
    """Put a package behind PyTorch's flash operators, for the whole process.

    Args:
        name: ``flash3`` or ``flash4``; anything else leaves PyTorch's own there.

    Raises:
        ValueError: the package does not load.
    """
    if name not in _FLASH_PACKAGES:
        return
    implementation, module = _FLASH_PACKAGES[name]
    try:
        torch.nn.attention.activate_flash_attention_impl(implementation)
    except (ImportError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"--attention-backend {name} cannot load {module} ({error}); repair the package, or "
            "pass auto"
        ) from error


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def has_weight_gradient_kernel() -> bool:
    """Return whether Apex's kernel that adds a weight's gradient to its fp32 sum is installed."""
    return _has_module("fused_weight_gradient_mlp_cuda")


def has_triton() -> bool:
    """Return whether Triton kernels can run here: compiled on a GPU, or interpreted for tests."""
    runs = has_cuda() or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and importlib.util.find_spec("triton") is not None


def describe() -> str:
    """Return one line for the log: device, torch, megatron-core, accelerated packages."""
    versions = {name: _version(name) for name in ACCELERATED_PACKAGES}
    packages = [f"{name} {version or 'not installed'}" for name, version in versions.items()]
    core = f"megatron-core {megatron_core_version()}"
    return ", ".join([device_name(), f"torch {torch.__version__}", core, *packages])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
