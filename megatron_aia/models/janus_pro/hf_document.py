"""Janus-Pro's config.json, written in both layouts."""

import math
from typing import Any

from megatron_aia.models.hugging_face import JSON, HFTarget
from megatron_aia.models.janus_pro.hf_config import PROJECTOR, TOWERS, VISION_FIXED
from megatron_aia.models.janus_pro.hf_processor import find_image_token_id
from megatron_aia.models.janus_pro.settings import JanusModelConfig
from megatron_aia.models.llama_config import newer_fields, write_llama


def document(target: HFTarget) -> JSON:
    """Return a config.json.

    Raises:
        ValueError: the authors' layout has no name for the tower.
    """
    text = write_llama(target.model, target.model.text_vocab_size, target.dtype)
    text |= {"model_type": "llama"}
    base = target.base or {}
    if target.layout == "original":
        fresh = _original_parts(target.model)
        inner = {**base.get("language_config", {}), **text}
        return {**fresh, **base, "language_config": inner, "torch_dtype": target.dtype}
    text |= newer_fields(target.model, target.dtype)
    inner = {**base.get("text_config", {}), **text}
    fresh = _transformers_parts(target)
    return {
        **fresh,
        **base,
        "text_config": inner,
        "tie_word_embeddings": False,
        "torch_dtype": target.dtype,
        "dtype": target.dtype,
    }


def _original_parts(model: JanusModelConfig) -> JSON:
    hidden, codes, channels = model.hidden_size, model.codebook_size, model.code_channels

    def part(name: str, class_name: str, **params: Any) -> JSON:
        return {f"{name}_config": {"cls": class_name, "model_type": name, "params": params}}

    return {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        **part(
            *("aligner", "MlpProjector"),
            **PROJECTOR,
            input_dim=model.vision_hidden_size,
            n_embed=hidden,
        ),
        **part("gen_aligner", "MlpProjector", **PROJECTOR, input_dim=channels, n_embed=hidden),
        **part(
            *("gen_head", "vision_head"),
            image_token_embed=hidden,
            image_token_size=codes,
            n_embed=hidden,
        ),
        **part("gen_vision", "VQ-16", image_token_size=codes, n_embed=channels),
        **part(
            *("vision", "CLIPVisionTower"),
            image_size=model.image_size,
            model_name=_tower_name(model),
            select_feature="same",
            select_layer=-1,
        ),
    }


def _tower_name(model: JanusModelConfig) -> str:
    sizes = {
        "width": model.vision_hidden_size,
        "layers": model.vision_num_layers,
        "heads": model.vision_num_attention_heads,
        "ffn": model.vision_ffn_hidden_size,
        "patch": model.patch_size,
    }
    for name, tower in TOWERS.items():
        if tower == sizes:
            return name
    raise ValueError(
        f"the original layout has no name for an image tower of {sizes['layers']} layers of width "
        f"{sizes['width']} (--hf-layout original)"
    )


def _transformers_parts(target: HFTarget) -> JSON:
    model = target.model
    return {
        "architectures": ["JanusForConditionalGeneration"],
        "model_type": "janus",
        "image_token_id": find_image_token_id(target),
        "vision_config": {
            "model_type": "janus_vision_model",
            "hidden_size": model.vision_hidden_size,
            "num_hidden_layers": model.vision_num_layers,
            "num_attention_heads": model.vision_num_attention_heads,
            "image_size": model.image_size,
            "patch_size": model.patch_size,
            "mlp_ratio": _mlp_ratio(model.vision_hidden_size, model.vision_ffn_hidden_size),
            "projection_dim": model.hidden_size,
            "num_image_tokens": model.image_slots,
            "depth": 2,
            **VISION_FIXED,
        },
        "vq_config": {
            "model_type": "janus_vqgan",
            "embed_dim": model.code_channels,
            "num_embeddings": model.codebook_size,
            "projection_dim": model.hidden_size,
            "image_token_embed_dim": model.hidden_size,
            "num_hidden_layers": 2,
            **_tokeniser_sizes(target),
        },
    }


def _mlp_ratio(width: int, ffn: int) -> float:
    """Return a ratio from which Transformers, which cuts off decimals, gets ``ffn`` again."""
    ratio = ffn / width
    return ratio if int(width * ratio) == ffn else math.nextafter(ratio, math.inf)


def _tokeniser_sizes(target: HFTarget) -> JSON:
    """Read the sizes of the image tokeniser's network off its tensors."""
    prefix = "gen_vision_model.encoder."
    if f"{prefix}conv_in.weight" not in target.passthrough:
        return {}
    base_channels = target.passthrough[f"{prefix}conv_in.weight"][0]
    first_of_level = f"{prefix}conv_blocks.{{}}.res.0.conv1.weight"
    widths: list[int] = []
    while first_of_level.format(len(widths)) in target.passthrough:
        widths.append(target.passthrough[first_of_level.format(len(widths))][0])
    blocks = f"{prefix}conv_blocks.0.res.{{}}.conv1.weight"
    num_blocks = sum(blocks.format(i) in target.passthrough for i in range(len(target.passthrough)))
    return {
        "base_channels": base_channels,
        "channel_multiplier": [width // base_channels for width in widths],
        "num_res_blocks": num_blocks,
        "latent_channels": target.passthrough[f"{prefix}conv_out.weight"][0],
    }
