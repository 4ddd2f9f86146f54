"""What megatron-core needs on a CPU over gloo. ``runtime.mcore.install`` calls it; no-op on CUDA.

Every version needs all of it.

======================  =========================================================================
adaptation              reason
======================  =========================================================================
``_redirect_cuda``      tensors are made with ``device="cuda"`` by name, all over megatron-core;
                        from 0.19 on the sum of gradients asks for the stream it runs on
``_accept_cpu_types``   optimizers compare type names such as ``torch.cuda.FloatTensor``
``_accept_cuda_calls``  the distributed optimizer gathers its state, the first and the last stage
                        share an embedding, and ranks that load together exchange tensors, from
                        ``tensor.cuda()`` copies
``_use_host_rng``       dropout and recompute save and restore the state of the CUDA generator
======================  =========================================================================
"""

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_aia.runtime.device import has_cuda

_FACTORIES = ("zeros", "ones", "full", "tensor", "empty", "empty_like", "zeros_like", "arange")


def adapt_to_cpu() -> None:
    """Let megatron-core run without CUDA. All its modules in use must be imported before."""
    if has_cuda():
        return
    _redirect_cuda()
    _accept_cpu_types()
    _accept_cuda_calls()
    _use_host_rng()


def _redirect_cuda() -> None:
    """Give every megatron-core module a view of torch in which "cuda" means the CPU.

    Only these modules' name ``torch`` changes; torch itself and user code stay as they are.
    """
    view = _CpuTorch()
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core") and getattr(module, "torch", None) is torch:
            module.torch = view  # type: ignore[attr-defined]


class _CpuTorch(types.ModuleType):
    """torch, with factories that put "cuda" tensors on the CPU and a small ``torch.cuda``."""

    def __init__(self) -> None:
        super().__init__("torch")
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))
        self.cuda = _CpuCuda()

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class _CpuCuda(types.ModuleType):
    """``torch.cuda`` for a machine without one: no streams to wait for, the host's generator."""

    def __init__(self) -> None:
        super().__init__("torch.cuda")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)

    @staticmethod
    def current_device() -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def synchronize(device: Any = None) -> None:
        return None

    @staticmethod
    def current_stream(device: Any = None) -> "_CpuStream":
        return _CpuStream()

    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    manual_seed = staticmethod(torch.manual_seed)


class _CpuStream:
    """The one order of work that a CPU has: what is waited for is done."""

    def wait_event(self, event: Any) -> None:
        return None

    def wait_stream(self, stream: Any) -> None:
        return None


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") is not None and str(kwargs["device"]).startswith("cuda"):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return create


def _accept_cpu_types() -> None:
    """Let ``Tensor.type()`` name CUDA types, only inside the functions that compare the names."""
    base = sys.modules["megatron.core.optimizer.optimizer"]
    distributed = sys.modules["megatron.core.optimizer.distrib_optimizer"]
    clip = _with_cuda_type_names(base.clip_grad_by_total_norm_fp32)
    for module in (base, sys.modules["megatron.core.optimizer.clip_grads"]):
        module.clip_grad_by_total_norm_fp32 = clip  # type: ignore[attr-defined]
    for cls in (distributed.DistributedOptimizer, base.Float16OptimizerWithFloat16Params):
        cls.__init__ = _with_cuda_type_names(cls.__init__)


def _accept_cuda_calls() -> None:
    """Let ``Tensor.cuda()`` return the tensor itself, only in the functions that need it."""
    distributed: Any = sys.modules["megatron.core.optimizer.distrib_optimizer"]
    language: Any = sys.modules["megatron.core.models.common.language_module.language_module"]
    parallel_load: Any = sys.modules["megatron.core.dist_checkpointing.strategies.fully_parallel"]
    for owner, name in (
        (distributed.DistributedOptimizer, "get_parameter_state_dp_zero"),
        (language.LanguageModule, "setup_embeddings_and_output_layer"),
        (parallel_load, "exchange_by_distribution"),
    ):
        function = getattr(owner, name)
        make = _with_tensor_method(
            function, "cuda", lambda original: lambda self, *args, **kw: self
        )
        setattr(owner, name, make)


def _with_cuda_type_names(function: Callable[..., Any]) -> Callable[..., Any]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def cuda_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            return result.replace("torch.", "torch.cuda.") if isinstance(result, str) else result

        return cuda_type

    return _with_tensor_method(function, "type", make)


def _with_tensor_method(
    function: Callable[..., Any],
    name: str,
    make: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> Callable[..., Any]:
    """Return ``function`` running with ``torch.Tensor.<name>`` replaced by ``make(original)``."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        original = getattr(torch.Tensor, name)
        setattr(torch.Tensor, name, make(original))
        try:
            return function(*args, **kwargs)
        finally:
            setattr(torch.Tensor, name, original)

    return call


def _use_host_rng() -> None:
    random = sys.modules["megatron.core.tensor_parallel.random"]
    random._get_cuda_rng_state = (  # type: ignore[attr-defined]
        lambda device="cpu", clone=False, graph_safe=False: torch.get_rng_state()
    )
    random._set_cuda_rng_state = (  # type: ignore[attr-defined]
        lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(new_state)
    )

    class HostRNGStatesTracker(random.CudaRNGStatesTracker):  # type: ignore[name-defined]
        """Forks the host's generator; the original warns when that generator moves in a fork."""

        @contextlib.contextmanager
        def fork(self, name: str = random._MODEL_PARALLEL_RNG_TRACKER_NAME) -> Iterator[None]:
            outer = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer)

    random.CudaRNGStatesTracker = HostRNGStatesTracker  # type: ignore[attr-defined]
