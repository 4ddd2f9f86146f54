"""How the tensors of a Hugging Face checkpoint make one megatron-core parameter, both ways.

A model's weights are a table: name of a parameter of the unsplit (TP 1) model to one of the maps
below. No map changes a number, so the way back gives every tensor bit by bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Shape = tuple[int, ...]


class ParamMap(ABC):
    """Hugging Face tensors, in order, to one parameter."""

    @property
    @abstractmethod
    def sources(self) -> dict[str, Shape]:
        """Names and shapes of the Hugging Face tensors."""

    @property
    @abstractmethod
    def target_shape(self) -> Shape:
        """Shape of the parameter."""

    @abstractmethod
    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the parameter made of the sources, given in the order of ``sources``.

        It has memory of its own: the sources may be views of files.
        """

    @abstractmethod
    def split(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Return the sources that make ``parameter``, in the order of ``sources``."""


@dataclass(frozen=True)
class Direct(ParamMap):
    """The parameter is the tensor."""

    source: str
    shape: Shape

    @property
    def sources(self) -> dict[str, Shape]:
        """One tensor."""
        return {self.source: self.shape}

    @property
    def target_shape(self) -> Shape:
        """The tensor's shape."""
        return self.shape

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return a copy of the tensor."""
        return tensors[0].clone()

    def split(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Return the parameter."""
        return [parameter]


@dataclass(frozen=True)
class FusedQKV(ParamMap):
    """Query, key and value projections, laid out group by group.

    A query group is its query heads, then its key head, then its value head: a tensor-parallel
    shard is then a number of whole groups. Inputs are ``hidden_size`` wide.
    """

    query: str
    key: str
    value: str
    num_groups: int
    num_heads: int
    head_size: int
    hidden_size: int

    @property
    def sources(self) -> dict[str, Shape]:
        """``[heads x head_size, hidden]``, and twice ``[groups x head_size, hidden]``."""
        keys = (self.num_groups * self.head_size, self.hidden_size)
        queries = (self.num_heads * self.head_size, self.hidden_size)
        return {self.query: queries, self.key: keys, self.value: keys}

    @property
    def target_shape(self) -> Shape:
        """``[(heads + 2 x groups) x head_size, hidden]``."""
        return ((self.num_heads + 2 * self.num_groups) * self.head_size, self.hidden_size)

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Interleave the groups."""
        groups = [t.reshape(self.num_groups, -1, self.hidden_size) for t in tensors]
        return torch.cat(groups, dim=1).flatten(0, 1)

    def split(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Take the groups apart."""
        heads_of_group = self.num_heads // self.num_groups
        sizes = [heads_of_group * self.head_size, self.head_size, self.head_size]
        groups = parameter.view(self.num_groups, sum(sizes), self.hidden_size)
        return [part.flatten(0, 1).contiguous() for part in groups.split(sizes, dim=1)]


@dataclass(frozen=True)
class GatedMLP(ParamMap):
    """Gate projection above the up projection, each ``[ffn_hidden_size, hidden_size]``."""

    gate: str
    up: str
    ffn_hidden_size: int
    hidden_size: int

    @property
    def sources(self) -> dict[str, Shape]:
        """Both ``[ffn, hidden]``."""
        shape = (self.ffn_hidden_size, self.hidden_size)
        return {self.gate: shape, self.up: shape}

    @property
    def target_shape(self) -> Shape:
        """``[2 x ffn, hidden]``."""
        return (2 * self.ffn_hidden_size, self.hidden_size)

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stack gate and up."""
        return torch.cat(list(tensors))

    def split(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Return gate and up."""
        return [half.contiguous() for half in parameter.chunk(2)]


@dataclass(frozen=True)
class Vocabulary(ParamMap):
    """A row for each id; rows of zeros pad it to the size that tensor parallelism divides."""

    source: str
    real_size: int
    padded_size: int
    hidden_size: int

    @property
    def sources(self) -> dict[str, Shape]:
        """``[real_size, hidden]``."""
        return {self.source: (self.real_size, self.hidden_size)}

    @property
    def target_shape(self) -> Shape:
        """``[padded_size, hidden]``."""
        return (self.padded_size, self.hidden_size)

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Add the padding."""
        rows = self.padded_size - self.real_size
        return torch.cat([tensors[0], tensors[0].new_zeros(rows, self.hidden_size)])

    def split(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Drop the padding."""
        return [parameter[: self.real_size].contiguous()]


def check_sources(
    table: dict[str, ParamMap], found: dict[str, Shape], carried: Callable[[str], bool]
) -> None:
    """Check that a checkpoint holds exactly what ``table`` needs and what may be carried.

    Args:
        table: the model's map.
        found: names and shapes of the checkpoint's tensors.
        carried: tells tensors that are kept aside.

    Raises:
        ValueError: a tensor is missing, is not known, or has another shape.
    """
    needed = {name: shape for entry in table.values() for name, shape in entry.sources.items()}
    missing = sorted(needed.keys() - found.keys())
    if missing:
        raise ValueError(f"the checkpoint lacks {_some(missing)}; its configuration says it has it")
    unknown = sorted(name for name in found.keys() - needed.keys() if not carried(name))
    if unknown:
        raise ValueError(f"the checkpoint holds {_some(unknown)}, which no part of the model takes")
    for name, shape in needed.items():
        if found[name] != shape:
            raise ValueError(
                f"{name} has shape {list(found[name])}, its configuration says {list(shape)}"
            )


def check_targets(table: dict[str, ParamMap], parameters: dict[str, Shape]) -> None:
    """Check that ``table`` sets every parameter of the model, in its shape.

    Raises:
        ValueError: a parameter would stay unset, or a map makes something else.
    """
    made = {name: entry.target_shape for name, entry in table.items()}
    if made != parameters:
        wrong = sorted(name for name, _ in made.items() ^ parameters.items())
        raise ValueError(f"the weight map and the model disagree on {_some(sorted(set(wrong)))}")


def _some(names: Sequence[str]) -> str:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{others}"
