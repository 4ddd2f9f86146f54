"""Layers that fork: a decoder layer of each branch under one number, of which a micro-batch takes
one.

All samples of a micro-batch are of one lane (``SampleEncoder.lane``), which is the branch. It
travels with the micro-batch as megatron-core's ``attention_bias``: a module's attribute would be
another micro-batch's by the time that a pipeline, or recompute, runs the layer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    BaseTransformerLayer,
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from torch import Tensor

from megatron_aia.config import Config
from megatron_aia.models.lanes import Way
from megatron_aia.models.layers import layer_specs

BRANCHES = ("understanding", "generation")
"""Names by lane."""


class SharedLayer(TransformerLayer):
    """A layer of both branches."""

    def forward(self, *args: Any, attention_bias: Optional[Way] = None, **kwargs: Any) -> Any:
        """As megatron-core's, with a ``Way`` as ``attention_bias``."""
        assert attention_bias is not None
        return super().forward(*args, attention_bias=attention_bias.attention_bias, **kwargs)


@dataclass
class ForkSubmodules:
    """Modules of the layers of both branches."""

    understanding: TransformerLayerSubmodules
    generation: TransformerLayerSubmodules


class ForkLayer(MegatronModule, BaseTransformerLayer):
    """Two layers of one number. The arguments are those of ``TransformerLayer``."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: ForkSubmodules,
        layer_number: int = 1,
        hidden_dropout: Optional[float] = None,
        pg_collection: Optional[ProcessGroupCollection] = None,
        vp_stage: Optional[int] = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        assert pg_collection is not None
        offset = get_transformer_layer_offset(config, vp_stage, pg_collection.pp.rank())
        self.layer_number = layer_number + offset
        for name in BRANCHES:
            layer = TransformerLayer(
                config,
                getattr(submodules, name),
                layer_number,
                hidden_dropout,
                pg_collection,
                vp_stage,
            )
            setattr(self, name, layer)

    def forward(
        self, hidden_states: Tensor, *args: Any, attention_bias: Optional[Way] = None, **kwargs: Any
    ) -> Any:
        """Run the layer of the branch that ``attention_bias`` says."""
        assert attention_bias is not None
        ours, idle = (
            getattr(self, BRANCHES[number])
            for number in (attention_bias.lane, 1 - attention_bias.lane)
        )
        hidden_states = with_zero_gradients(hidden_states, idle)
        return ours(hidden_states, *args, attention_bias=attention_bias.attention_bias, **kwargs)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Any, ...] = (),
        metadata: Optional[dict[str, Any]] = None,
    ) -> dict[str, Any]:
        """Return megatron-core's form of the weights for a checkpoint of any layout."""
        state: dict[str, Any] = {}
        for name in BRANCHES:
            layer = getattr(self, name)
            state |= layer.sharded_state_dict(f"{prefix}{name}.", sharded_offsets, metadata)
        return state


def fork_specs(
    config: Config, core: TransformerConfig, virtual_stage: int, rank: int, num_shared: int
) -> TransformerBlockSubmodules:
    """Return the layers of one model chunk; norms at their end are the model's, one a branch.

    Args:
        config: of the run.
        core: the same as megatron-core has it.
        virtual_stage: number of the chunk on its pipeline stage.
        rank: of the pipeline stage.
        num_shared: layers below the fork.
    """
    branches = [layer_specs(config, core, virtual_stage, branch) for branch in (0, 1)]
    shared, other = (block.layer_specs[0] for block in branches)
    fork = ForkSubmodules(shared.submodules, other.submodules)
    stage = virtual_stage if core.virtual_pipeline_model_parallel_size else None
    first = get_transformer_layer_offset(core, stage, rank)
    specs = [
        ModuleSpec(module=SharedLayer, submodules=shared.submodules)
        if first + number < num_shared
        else ModuleSpec(module=ForkLayer, submodules=fork)
        for number in range(len(branches[0].layer_specs))
    ]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=None)


def with_zero_gradients(value: Tensor, *modules: torch.nn.Module) -> Tensor:
    """Return ``value``; its backward gives the modules' parameters a gradient of zero.

    A bucket of gradients is reduced once all its parameters have one. They come in the order in
    which a forward would use the parameters, which is the same in every micro-batch.
    """
    if not (torch.is_grad_enabled() and value.requires_grad):
        return value
    for parameter in _in_order_of_use(modules):
        if parameter.requires_grad:
            value = _Touch.apply(value, parameter)
    return value


def _in_order_of_use(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Parameter]:
    order = ("input_layernorm", "linear_qkv", "linear_proj", "pre_mlp_layernorm", "linear_fc")

    def place(name: str) -> int:
        found = [number for number, part in enumerate(order) if part in name]
        return found[0] if found else len(order)

    named = [entry for module in modules for entry in module.named_parameters()]
    return [parameter for _, parameter in sorted(named, key=lambda entry: place(entry[0]))]


class _Touch(torch.autograd.Function):
    """Identity on ``value``; the gradient of ``parameter`` is zero, and takes no memory."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, parameter: Tensor) -> Tensor:
        ctx.parameter = parameter
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        parameter = ctx.parameter
        return gradient, parameter.new_zeros(()).expand(parameter.shape)
