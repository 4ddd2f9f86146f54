"""Which modules the decoder's layers are made of, and how they attend."""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_aia.attention.core_attention import AIACoreAttention
from megatron_aia.attention.methods import Machine, Method, choose_method
from megatron_aia.attention.sampled_attention import SampledCoreAttention
from megatron_aia.attention.self_check import AttentionSetting, check_method
from megatron_aia.config import Config
from megatron_aia.models.norm import RMSNorm
from megatron_aia.runtime.device import (
    compute_capability,
    device,
    flash_attention_packages,
    has_cuda,
    has_cudnn_attention,
    has_transformer_engine,
    has_triton,
    use_flash_attention,
)


def layer_specs(
    config: Config, core: TransformerConfig, virtual_stage: int, branch: int = 0
) -> TransformerBlockSubmodules:
    """Choose the modules of the layers of one model chunk, or of one branch of it.

    Raises:
        ValueError: the attention method or the layer implementation cannot run on this machine.
    """
    norm: Any = RMSNorm
    if uses_transformer_engine(config):
        from megatron.core.extensions.transformer_engine import TENorm

        layer, norm = get_gpt_layer_with_transformer_engine_spec(), TENorm
    else:
        layer = get_gpt_layer_local_spec(normalization="RMSNorm")
        layer.submodules.input_layernorm = RMSNorm
        layer.submodules.pre_mlp_layernorm = RMSNorm
    _choose_core_attention(layer.submodules.self_attention, config, core, branch)
    count = get_num_layers_to_build(core, virtual_stage if core.overlap_p2p_comm else None)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=norm)


def uses_own_attention(config: Config) -> bool:
    """Return whether the core attention of the decoder is this project's.

    It is with AIA on; where context-parallel ranks share sequences, which megatron-core's plain one
    cannot; and for packed sequences on a GPU, where megatron-core's has no fast kernel that keeps
    samples apart. Otherwise AIA off is megatron-core alone.
    """
    context_parallel = config.parallel.context_parallel_size > 1
    return config.aia.aia or context_parallel or (config.data.packing and has_cuda())


def _choose_core_attention(
    attention: ModuleSpec, config: Config, core: TransformerConfig, branch: int
) -> None:
    """Set the core attention of a layer's self-attention."""
    if uses_own_attention(config):
        method = attention_method(config, core.params_dtype, core.tensor_model_parallel_size)
        params: dict[str, Any] = {"method": method, "branch": branch}
        own = ModuleSpec(module=AIACoreAttention, params=params)
        if core.fp8_dot_product_attention:
            inner = attention.submodules.core_attention
            own = ModuleSpec(module=SampledCoreAttention, params={"inner": inner, **params})
        attention.submodules.core_attention = own
    elif not (uses_transformer_engine(config) and not config.data.packing):
        # megatron-core's kernels for causal masks do not look at the mask, and sequences are
        # packed.
        attention.params = {"attn_mask_type": AttnMaskType.arbitrary}


def attention_method(config: Config, dtype: torch.dtype, tensor_parallel_size: int) -> Method:
    """Choose the attention method of a run, and check it on this machine.

    Raises:
        ValueError: the method that is asked for cannot run here, or gives wrong numbers.
    """
    model, aia = config.model, config.aia
    machine = Machine(
        device_type=device().type,
        dtype=dtype,
        head_size=model.head_size,
        capability=compute_capability(),
        has_triton=has_triton(),
        has_cudnn_attention=has_cudnn_attention(),
        flash_packages=flash_attention_packages(),
        attends_in_fp8=config.training.fp8_dot_product_attention,
    )
    method = choose_method(
        aia.aia_attention,
        machine,
        aia.aia_sampled_queries,
        config.run.seed,
        model.attention_backend,
    )
    if torch.get_default_device().type == "meta":
        return method  # nobody asks this model for numbers
    use_flash_attention(method.backend)
    setting = AttentionSetting(
        device=device(),
        dtype=dtype,
        heads=model.num_attention_heads // tensor_parallel_size,
        groups=model.num_query_groups // tensor_parallel_size,
        head_size=model.head_size,
        context_parallel=config.parallel.context_parallel_size > 1,
    )
    return check_method(method, setting, model.attention_backend == "auto")


def uses_transformer_engine(config: Config) -> bool:
    """Return whether layers come from Transformer Engine.

    Raises:
        ValueError: it is asked for and cannot run here.
    """
    choice = config.model.transformer_impl
    if choice == "transformer_engine" and not has_transformer_engine():
        raise ValueError(
            "--transformer-impl transformer_engine needs a CUDA device and the package "
            "transformer-engine; install it or use --transformer-impl local"
        )
    return choice != "local" and has_transformer_engine()
