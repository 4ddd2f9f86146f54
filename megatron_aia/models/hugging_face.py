"""What the converter knows of a model family's Hugging Face checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from megatron_aia.config import ModelConfig
    from megatron_aia.models.param_map import ParamMap

HFLayout = Literal["original", "transformers"]
"""``original``: as the authors published it; ``transformers``: as that library saves it."""


@dataclass(frozen=True)
class HFNames:
    """One way to name the tensors of a family."""

    decoder: str
    """Prefix of the decoder's tensors."""
    head: str
    """Name of the output matrix."""
    carried: str = ""
    """Prefix of tensors that only travel; "" if there are none."""

    def carries(self, name: str) -> bool:
        """Return whether a tensor only travels."""
        return bool(self.carried) and name.startswith(self.carried)


@dataclass(frozen=True)
class HFFormat:
    """A family's side of the conversion."""

    model_types: dict[str, HFLayout]
    """``model_type`` of a config.json, and the layout that says so."""
    find_names: Callable[[Set[str]], HFNames]
    """The naming that tensors with these names follow; ValueError if none does."""
    export_names: Callable[[HFLayout, bool], HFNames]
    """The naming to write: ``(layout, with carried tensors)``."""
    model_config: Callable[[dict[str, Any]], ModelConfig]
    """A config.json as this project's configuration; ValueError if it is of another model."""
    weight_map: Callable[[ModelConfig, HFNames], dict[str, ParamMap]]
    """Parameters of the unsplit model, and what makes them."""
    document: Callable[[ModelConfig, HFLayout, dict[str, Any] | None, bool, str], dict[str, Any]]
    """config.json: ``(model, layout, one of this layout to start from, with carried, dtype)``."""
    vocab_size: Callable[[ModelConfig], int]
    """Ids before padding."""
    reference: Callable[
        [Path, dict[str, Any], Callable[[str], torch.Tensor], torch.Tensor], torch.Tensor
    ]
    """``(folder, config.json, tensor by name, ids)`` to Transformers' logits."""
    files: tuple[str, ...]
    """Patterns of tokeniser and processor files."""
