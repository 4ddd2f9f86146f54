"""How the tensors of a Hugging Face checkpoint make one megatron-core parameter, both ways.

A model's weights are a table: name of a parameter of the unsplit (TP 1) model to one of the maps
below. No map changes a number, so the way back gives every tensor bit by bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    """The parameter is the tensor; ``source_shape`` has ones more or less than ``shape``."""

    source: str
    shape: Shape
    source_shape: Shape | None = None

    @property
    def sources(self) -> dict[str, Shape]:
        """One tensor."""
        return {self.source: self.source_shape or self.shape}

    @property
    def target_shape(self) -> Shape:
        """Shape of the parameter."""
        return self.shape

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return a copy of the tensor."""
        return tensors[0].clone().view(self.shape)

    def split(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Return the parameter."""
        return [parameter.view(self.source_shape or self.shape)]


@dataclass(frozen=True)
class FusedQKV(ParamMap):
    """Query, key and value projections, laid out group by group.

    A query group is its query heads, then its key head, then its value head: a tensor-parallel
    shard is then a number of whole groups. ``row_shape`` is ``(hidden_size,)`` for weights and
    ``()`` for biases.
    """

    query: str
    key: str
    value: str
    num_groups: int
    num_heads: int
    head_size: int
    row_shape: Shape

    @property
    def sources(self) -> dict[str, Shape]:
        """``[heads x head_size, *row]``, and twice ``[groups x head_size, *row]``."""
        keys = (self.num_groups * self.head_size, *self.row_shape)
        queries = (self.num_heads * self.head_size, *self.row_shape)
        return {self.query: queries, self.key: keys, self.value: keys}

    @property
    def target_shape(self) -> Shape:
        """``[(heads + 2 x groups) x head_size, *row]``."""
        return ((self.num_heads + 2 * self.num_groups) * self.head_size, *self.row_shape)

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Interleave the groups."""
        groups = [t.reshape(self.num_groups, -1, *self.row_shape) for t in tensors]
        return torch.cat(groups, dim=1).flatten(0, 1)

    def split(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Take the groups apart."""
        heads_of_group = self.num_heads // self.num_groups
        sizes = [heads_of_group * self.head_size, self.head_size, self.head_size]
        groups = parameter.view(self.num_groups, sum(sizes), *self.row_shape)
        return [part.flatten(0, 1).contiguous() for part in groups.split(sizes, dim=1)]


@dataclass(frozen=True)
class StackedQKV(ParamMap):
    """One tensor of all queries, then all keys, then all values, to the layout of ``FusedQKV``.

    Every head has keys and values of its own. ``row_shape`` as there.
    """

    source: str
    num_heads: int
    head_size: int
    row_shape: Shape

    @property
    def sources(self) -> dict[str, Shape]:
        """``[3 x heads x head_size, *row]``."""
        return {self.source: self.target_shape}

    @property
    def target_shape(self) -> Shape:
        """``[heads x 3 x head_size, *row]``."""
        return (3 * self.num_heads * self.head_size, *self.row_shape)

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Bring the three parts of each head together."""
        parts = tensors[0].reshape(3, self.num_heads, self.head_size, *self.row_shape)
        return parts.transpose(0, 1).flatten(0, 2).clone()

    def split(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Bring the heads of each part together."""
        heads = parameter.view(self.num_heads, 3, self.head_size, *self.row_shape)
        return [heads.transpose(0, 1).flatten(0, 2).contiguous()]


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
    """A row for each id; rows of zeros pad it to the size that tensor parallelism divides.

    ``row_shape`` is ``(hidden_size,)`` for weights and ``()`` for biases.
    """

    source: str
    real_size: int
    padded_size: int
    row_shape: Shape

    @property
    def sources(self) -> dict[str, Shape]:
        """``[real_size, *row]``."""
        return {self.source: (self.real_size, *self.row_shape)}

    @property
    def target_shape(self) -> Shape:
        """``[padded_size, *row]``."""
        return (self.padded_size, *self.row_shape)

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Add the padding."""
        rows = self.padded_size - self.real_size
        return torch.cat([tensors[0], tensors[0].new_zeros(rows, *self.row_shape)])

    def split(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Drop the padding."""
        return [parameter[: self.real_size].contiguous()]


def linear_map(ours: str, theirs: str, rows: int, columns: int) -> dict[str, ParamMap]:
    """Return weight ``[rows, columns]`` and bias of a linear layer, by name."""
    return {
        f"{ours}.weight": Direct(f"{theirs}.weight", (rows, columns)),
        f"{ours}.bias": Direct(f"{theirs}.bias", (rows,)),
    }


def norm_map(ours: str, theirs: str, width: int) -> dict[str, ParamMap]:
    """Return weight and bias of a LayerNorm, by name."""
    return {f"{ours}.{kind}": Direct(f"{theirs}.{kind}", (width,)) for kind in ("weight", "bias")}
