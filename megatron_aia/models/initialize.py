"""Fresh weights that do not depend on the layout.

megatron-core draws weights from one generator in the order modules are built, so another pipeline
split gives another model. Here each parameter has its own seed, made from its global name.
"""

import hashlib
import math
import re
from collections.abc import Iterator

import torch

from megatron_aia.config import Config
from megatron_aia.models.backbone import PackedGPTModel

_LAYER = re.compile(r".*?\.layers\.\d+\.")
_RESIDUAL_OUTPUTS = ("linear_proj.weight", "linear_fc2.weight")


def global_parameters(model: PackedGPTModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield parameters with layer numbers counted (from 0) over the whole model."""
    numbers = {
        f"{block}.layers.{i}.": f"{block}.layers.{layer.layer_number - 1}."
        for block in model.blocks
        for i, layer in enumerate(model.get_submodule(block).layers)
    }
    for name, parameter in model.named_parameters():
        prefix = _LAYER.match(name)
        if prefix and prefix[0] in numbers:
            name = numbers[prefix[0]] + name[prefix.end() :]
        yield name, parameter


@torch.no_grad()
def initialize_weights(model: PackedGPTModel, config: Config) -> None:
    """Draw the weights of a model chunk: normal, residual outputs scaled by 1/sqrt(2 layers)."""
    for name, parameter in global_parameters(model):
        if name.endswith("bias"):
            parameter.zero_()
            continue
        if "norm" in name:
            parameter.fill_(1.0)
            continue
        std = model.fresh_deviations().get(name, config.model.init_method_std)
        if name.startswith(model.blocks) and name.endswith(_RESIDUAL_OUTPUTS):
            std /= math.sqrt(2 * config.model.num_layers)
        parameter.copy_(_draw_shard(model, name, parameter, std, config.run.seed))


def _draw_shard(
    model: PackedGPTModel, name: str, parameter: torch.Tensor, std: float, seed: int
) -> torch.Tensor:
    """Draw the whole parameter and keep this tensor-parallel rank's part of it."""
    group = model.pg_collection.tp
    size, rank = group.size(), group.rank()
    split = getattr(parameter, "partition_dim", -1)
    shape = list(parameter.shape)
    if split >= 0:
        shape[split] *= size
    if name.startswith(model.blocks) and name.endswith("linear_fc1.weight"):
        # A rank holds its part of the gate, then its part of the up projection.
        half = [shape[0] // 2, *shape[1:]]
        parts = [_draw(f"{name}.{part}", half, std, seed) for part in ("gate", "up")]
        return torch.cat([part.chunk(size)[rank] for part in parts])
    name = model.copies().get(name, name)
    real = model.real_sizes().get(name)
    if real is not None:
        full = torch.zeros(shape)
        full[:real] = _draw(name, [real, *shape[1:]], std, seed)
    else:
        full = _draw(name, shape, std, seed)
    return full.chunk(size, dim=split)[rank] if split >= 0 else full


def _draw(name: str, shape: list[int], std: float, seed: int) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=generator) * std
