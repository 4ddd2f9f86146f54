"""What the converter knows of a model family's Hugging Face checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from megatron_aia.config import ModelConfig
    from megatron_aia.models.backbone import PackedGPTModel
    from megatron_aia.models.param_map import ParamMap, Shape

HFLayout = Literal["original", "transformers"]
"""``original``: as the authors published it; ``transformers``: as that library saves it."""

JSON = dict[str, Any]


class HFNames(Protocol):
    """One way to name the tensors of a family.

    Some tensors only travel: image tokenisers, for example. They are kept aside under names that
    do not depend on the layout.
    """

    def passthrough_name(self, name: str) -> str | None:
        """Return the name to keep a tensor under; None if it is one of the model's."""

    def export_name(self, kept: str) -> str | None:
        """Return the name of a kept tensor here; None if this layout has no place for it."""


@dataclass(frozen=True)
class HFSource:
    """A Hugging Face checkpoint to read."""

    folder: Path
    config: JSON
    """Its config.json."""
    names: Sequence[str]
    """Of its tensors."""
    read: Callable[[str], torch.Tensor]
    """A tensor by name."""


@dataclass(frozen=True)
class HFTarget:
    """A Hugging Face checkpoint to write."""

    model: Any
    """Its architecture: the family's ``model_config``."""
    layout: HFLayout
    dtype: str
    """Of its weights, as ``bfloat16``."""
    base: JSON | None
    """config.json of the source if it has this layout."""
    passthrough: Mapping[str, Shape]
    """Tensors that only travel and are written: name kept under to shape."""
    hf_assets: Path
    """What was kept of the source: tokeniser and processor files; need not exist."""


@dataclass(frozen=True)
class VerifyCase:
    """Input on which two models are compared: ``b`` sequences of ``s`` tokens."""

    name: str
    """What it tries, for a reader."""
    tokens: torch.Tensor
    """int64 ``[b, s]``, ids of the family's sequences."""
    segment_ids: torch.Tensor
    """int64 ``[b, s]``; -1 in padding, where logits are not compared."""
    images: torch.Tensor | None = None
    """uint8 ``[n, 3, side, side]`` in the order of their slots."""

    @property
    def position_ids(self) -> torch.Tensor:
        """int64 ``[b, s]``, from 0 at the first token of a sequence, padding or not."""
        import torch

        return torch.arange(self.tokens.shape[1]).expand(self.tokens.shape[0], -1)


@dataclass(frozen=True)
class HFFormat:
    """A family's side of the conversion."""

    model_types: dict[str, HFLayout]
    """``model_type`` of a config.json, and the layout that says so."""
    find_names: Callable[[Set[str]], HFNames]
    """The naming that tensors with these names follow; ValueError if none does."""
    export_names: Callable[[HFLayout, bool], HFNames]
    """The naming to write: ``(layout, whether tensors were kept aside)``."""
    model_config: Callable[[JSON], ModelConfig]
    """A config.json as this project's configuration; ValueError if it is of another model."""
    weight_map: Callable[[Any, Any], dict[str, ParamMap]]
    """Parameters of the unsplit model, and what makes them in a naming of this family."""
    document: Callable[[HFTarget], JSON]
    """config.json; ValueError if the layout cannot express the model."""
    verify_cases: Callable[[Any], list[VerifyCase]]
    """Inputs for ``--verify``."""
    reference_logits: Callable[[HFSource, Sequence[VerifyCase]], list[torch.Tensor]]
    """Transformers' fp32 logits ``[b, s, v]`` of each case."""
    reference_model: Callable[[HFSource], Any]
    """Transformers' model of a checkpoint in either layout."""
    reference_inputs: Callable[
        [Any, Any, torch.Tensor, torch.Tensor | None], dict[str, torch.Tensor]
    ]
    """``(Transformers' model, architecture, tokens, images)`` to arguments of its ``forward``:
    tokens int64 ``[1, s]`` as the family writes them, images uint8 ``[n, 3, side, side]``."""
    own_logits: Callable[[PackedGPTModel, VerifyCase], torch.Tensor]
    """This project's, of the unsplit model; columns of padding may follow."""
    files: tuple[str, ...]
    """Patterns of tokeniser and processor files, copied where the layout stays the same."""
    shared_files: tuple[str, ...] = ()
    """Those of them that both layouts read."""
    documents: tuple[str, ...] = ()
    """Parts of the configuration that are files of their own, ``NAME.json``: each stands under its
    name in the JSON of ``model_config``, where there is such a file."""
    processor_files: Callable[[HFTarget], dict[str, JSON]] = lambda target: {}
    """Files to write where the source had another layout: name to content."""
