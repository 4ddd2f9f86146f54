"""UniFork's config.json, read and written.

The authors' folder has Qwen2's sizes in its config.json, and those of codes and head in the
config.json of the VILA-U tower. A folder that holds both has the tower's as
``vision_tower_config.json``; without it, the sizes are those of the published tower.
"""

from typing import Any

from megatron_aia.models.hugging_face import JSON, HFTarget
from megatron_aia.models.llama_config import check_size, part_of, read_llama, write_llama
from megatron_aia.models.unifork.settings import UniForkModelConfig

TOWER = "vision_tower_config"
"""Part of the document that is a file of its own."""
_QWEN_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000,
}
_HEAD_DEFAULTS: dict[str, Any] = {
    "block_size": [16, 16, 4],
    "embed_dim": 3584,
    "input_embed_dim_1": 1024,
    "vocab_size": 16_384,
    "head": {"block": {"n_head": 32}, "n_layer": 6},
}
_IMAGE_DEFAULTS: dict[str, Any] = {"image_size": 384, "patch_size": 16}


def model_config(document: JSON) -> UniForkModelConfig:
    """Read the architecture.

    Raises:
        ValueError: a value is of another architecture than UniFork's.
    """
    text = {**_QWEN_DEFAULTS, **document}
    if text.get("use_sliding_window"):
        raise ValueError("config.json: use_sliding_window is true, UniFork's decoder has no window")
    # Qwen2 has biases without saying so, and the embedding is the output matrix where it says so.
    is_tied = bool(text.pop("tie_word_embeddings", False))
    fields = read_llama(text)
    tower = part_of(document, TOWER)
    head = {**_HEAD_DEFAULTS, **part_of(tower, "rqtransformer")}
    image = {**_IMAGE_DEFAULTS, **part_of(tower, "siglip_vision")}
    layers = part_of(head, "head")
    sizes = {
        "codebook_size": head["vocab_size"],
        "code_depth": head["block_size"][-1],
        "code_channels": head["input_embed_dim_1"],
        "depth_num_layers": layers.get("n_layer"),
        "depth_attention_size": head["embed_dim"],
        "depth_num_attention_heads": part_of(layers, "block").get("n_head"),
        "image_size": image["image_size"],
        "patch_size": image["patch_size"],
    }
    for name, value in sizes.items():
        check_size(name, value)
    return UniForkModelConfig(
        model="unifork",
        **fields,
        **sizes,
        text_vocab_size=text["vocab_size"],
        # Fixed in the authors' code.
        num_shared_layers=document.get("num_shared_layers", fields["num_layers"] // 2),
        depth_ffn_hidden_size=4 * fields["hidden_size"],
        add_qkv_bias=True,
        untie_embeddings_and_output_weights=not is_tied,
    )


def document(target: HFTarget) -> JSON:
    """Return a config.json.

    Raises:
        ValueError: the layout cannot express the model.
    """
    model = target.model
    if target.layout != "original":
        raise ValueError("Transformers has no UniFork; use --hf-layout original")
    half = model.num_layers // 2
    if model.num_shared_layers != half:
        raise ValueError(
            f"--num-shared-layers {model.num_shared_layers}: the authors' code shares half of the "
            f"layers, {half}, and can load no other model"
        )
    text = write_llama(model, model.text_vocab_size, target.dtype)
    for name in ("attention_bias", "mlp_bias"):
        del text[name]
    tied = {"tie_word_embeddings": not model.untie_embeddings_and_output_weights}
    classes = {"architectures": ["LlavaQwen2ForCausalLM"]}
    return {**classes, **(target.base or {}), **text, **tied, "model_type": "llava_qwen2"}
