"""Janus-Pro's config.json, read in both layouts.

The authors name their tower; its sizes are known by that name only. What a class of theirs takes
when a value is missing is taken here, too.
"""

from typing import Any

from megatron_aia.models.hugging_face import JSON
from megatron_aia.models.janus_pro.settings import JanusModelConfig
from megatron_aia.models.llama_config import check_number, check_size, part_of, read_llama

TOWERS: dict[str, dict[str, int]] = {
    "siglip_large_patch16_384": {"width": 1024, "layers": 24, "heads": 16, "ffn": 4096, "patch": 16}
}
"""The authors' towers by name."""

_LLAMA_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000,
}
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 16,
    "mlp_ratio": 4.0,
    "depth": 2,
}
VISION_FIXED: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "attention_bias": True,
    "use_qk_norm": False,
    "num_channels": 3,
}
_CODES_DEFAULTS: dict[str, Any] = {"embed_dim": 8, "num_embeddings": 16_384, "num_hidden_layers": 2}
_SIZES = (
    *("image_size", "patch_size", "codebook_size", "code_channels", "vision_num_layers"),
    *("vision_hidden_size", "vision_ffn_hidden_size", "vision_num_attention_heads"),
)
PROJECTOR: dict[str, Any] = {"depth": 2, "projector_type": "mlp_gelu"}


def model_config(document: JSON) -> JanusModelConfig:
    """Read the architecture from a config.json of either layout.

    Raises:
        ValueError: a value is of another architecture than Janus-Pro's.
    """
    is_original = "language_config" in document
    text = document.get("language_config" if is_original else "text_config")
    if not isinstance(text, dict):
        raise ValueError("config.json: it has neither language_config nor text_config")
    text = {**_LLAMA_DEFAULTS, **text}
    text.setdefault("num_key_value_heads", text["num_attention_heads"])
    fields = read_llama(text) | (
        _read_original(document) if is_original else _read_transformers(document)
    )
    for name in _SIZES:
        check_size(name, fields[name])
    return JanusModelConfig(model="janus_pro", text_vocab_size=text["vocab_size"], **fields)


def _read_original(document: JSON) -> JSON:
    parts = {
        name: part_of(part_of(document, f"{name}_config"), "params")
        for name in ("vision", "aligner", "gen_aligner", "gen_vision", "gen_head")
    }
    for name in ("aligner", "gen_aligner"):
        for field, value in PROJECTOR.items():
            if parts[name].get(field) != value:
                raise ValueError(
                    f"config.json: {field} of {name}_config is {parts[name].get(field)!r}, "
                    f"Janus-Pro has {value!r}"
                )
    tower_name = parts["vision"].get("model_name")
    if tower_name not in TOWERS:
        raise ValueError(
            f"config.json: the image tower {tower_name!r} is not known; known are "
            f"{', '.join(TOWERS)}"
        )
    tower = TOWERS[tower_name]
    select_layer = parts["vision"].get("select_layer", -2)
    if isinstance(select_layer, bool) or not isinstance(select_layer, int):
        raise ValueError(f"config.json: select_layer is {select_layer!r}, no whole number")
    last = tower["layers"] + select_layer + 1 if select_layer <= 0 else select_layer
    return {
        "vision_num_layers": min(tower["layers"], last),
        "vision_hidden_size": tower["width"],
        "vision_ffn_hidden_size": tower["ffn"],
        "vision_num_attention_heads": tower["heads"],
        "image_size": parts["vision"].get("image_size", 336),
        "patch_size": tower["patch"],
        "codebook_size": parts["gen_vision"].get("image_token_size"),
        "code_channels": parts["gen_vision"].get("n_embed"),
    }


def _read_transformers(document: JSON) -> JSON:
    vision = {**_VISION_DEFAULTS, **part_of(document, "vision_config")}
    codes = {**_CODES_DEFAULTS, **part_of(document, "vq_config")}
    for name, value in VISION_FIXED.items():
        if vision.get(name, value) != value:
            raise ValueError(f"config.json: {name} is {vision[name]!r}, Janus-Pro has {value!r}")
    check_size("hidden_size", vision["hidden_size"])
    check_number("mlp_ratio", vision["mlp_ratio"])
    if (vision["depth"], codes["num_hidden_layers"]) != (2, 2):
        raise ValueError(
            f"config.json: the aligners have {vision['depth']} and {codes['num_hidden_layers']} "
            "layers, Janus-Pro's have 2"
        )
    return {
        "vision_num_layers": vision["num_hidden_layers"],
        "vision_hidden_size": vision["hidden_size"],
        "vision_ffn_hidden_size": int(vision["hidden_size"] * vision["mlp_ratio"]),
        "vision_num_attention_heads": vision["num_attention_heads"],
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "codebook_size": codes["num_embeddings"],
        "code_channels": codes["embed_dim"],
    }
