"""Which calls of ``aten`` a piece of code makes: kernels on a GPU, and waits for it."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")
"""Calls whose result the host needs."""


class Calls(TorchDispatchMode):
    """Collects the names of calls that are no views, and copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::")
        if not func.is_view:
            self.names.append(name)
        tensors = [x for x in (*args, result) if isinstance(x, Tensor)]
        crosses = name.startswith(("_to_copy", "copy_")) and len({x.device for x in tensors}) > 1
        if crosses or name.startswith(WAITS):
            self.waits.append(name)
        return result
