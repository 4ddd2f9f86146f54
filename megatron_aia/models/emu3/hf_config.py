"""Emu3's config.json, read and written."""

from typing import Any

from megatron_aia.config import ModelConfig
from megatron_aia.models.emu3.vocabulary import Emu3Vocabulary
from megatron_aia.models.hugging_face import HFLayout

# A config.json may leave out what is as in its class; these are the classes' values.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 184_622,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 9216,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 151_643,
}
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
_SPECIAL_TOKENS = Emu3Vocabulary(1, 1).size - 2


def model_config(document: dict[str, Any]) -> ModelConfig:
    """Read the architecture from a config.json.

    Raises:
        ValueError: a value is of another architecture than Emu3's.
    """
    text = {**_DEFAULTS, **document.get("text_config", document)}
    for name, value in _FIXED.items():
        if text.get(name, value) != value:
            raise ValueError(f"config.json: {name} is {text[name]!r}, Emu3 has {value!r}")
    pad, vocab_size = text["pad_token_id"], text["vocab_size"]
    sizes = [value for name, value in text.items() if name in _DEFAULTS and name != "rms_norm_eps"]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError("config.json: a size of the model is no positive number")
    codebook_size = vocab_size - pad - _SPECIAL_TOKENS
    stated = document.get("vq_config", {}).get("codebook_size", codebook_size)
    if codebook_size < 1 or stated != codebook_size:
        raise ValueError(
            f"config.json: vocab_size {vocab_size} with pad_token_id {pad} leaves {codebook_size} "
            f"image codes, and the codebook has {stated}"
        )
    heads, groups = text["num_attention_heads"], text["num_key_value_heads"]
    default_size, rest = divmod(text["hidden_size"], heads)
    head_size = text.get("head_dim") or default_size
    if heads % groups or (rest and not text.get("head_dim")):
        raise ValueError(f"config.json: {heads} heads do not divide into {groups} groups")
    return ModelConfig(
        model="emu3",
        num_layers=text["num_hidden_layers"],
        hidden_size=text["hidden_size"],
        ffn_hidden_size=text["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=groups,
        kv_channels=None if head_size == default_size else head_size,
        max_position_embeddings=text["max_position_embeddings"],
        norm_epsilon=text["rms_norm_eps"],
        rotary_base=_rotary_base(text),
        text_vocab_size=pad,
        codebook_size=codebook_size,
    )


def _rotary_base(text: dict[str, Any]) -> int:
    rope = text.get("rope_parameters") or {}
    scaling = text.get("rope_scaling") or rope
    theta = rope.get("rope_theta", text.get("rope_theta", 1_000_000))
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        raise ValueError("config.json: the rotary embedding is scaled, Emu3's is not")
    if int(theta) != theta:
        raise ValueError(f"config.json: rope_theta {theta} is no whole number")
    return int(theta)


def document(
    model: ModelConfig,
    layout: HFLayout,
    base: dict[str, Any] | None,
    with_carried: bool,
    dtype: str,
) -> dict[str, Any]:
    """Return a config.json.

    Raises:
        ValueError: the layout cannot express the model.
    """
    whole = base is not None and "text_config" in base
    if layout == "transformers" and with_carried and not whole:
        raise ValueError("the image tokeniser has no config.json beside it")
    if layout == "original" and model.kv_channels:
        raise ValueError("the original layout has no head size of its own (--hf-layout original)")
    text = _text_document(model, dtype)
    dropout = {"attention_dropout": model.attention_dropout}
    if layout == "original":
        classes = {
            "AutoConfig": "configuration_emu3.Emu3Config",
            "AutoModelForCausalLM": "modeling_emu3.Emu3ForCausalLM",
        }
        return {"auto_map": classes, **dropout, **(base or {}), **text, "model_type": "Emu3"}
    text |= {
        "model_type": "emu3_text_model",
        "rope_parameters": {"rope_type": "default", "rope_theta": float(model.rotary_base)},
    }
    if not with_carried:
        return {**dropout, **(base if base and not whole else {}), **text}
    assert base is not None
    inner = {**base["text_config"], **text}
    return {**base, "text_config": inner, "torch_dtype": dtype, "tie_word_embeddings": False}


def _text_document(model: ModelConfig, dtype: str) -> dict[str, Any]:
    ids = Emu3Vocabulary(model.text_vocab_size, model.codebook_size)
    head_size = {"head_dim": model.kv_channels} if model.kv_channels else {}
    return {
        "architectures": ["Emu3ForCausalLM"],
        "vocab_size": ids.size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        **head_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": float(model.rotary_base),
        "rope_scaling": None,
        **_FIXED,
        "pad_token_id": ids.pad,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos,
        **{f"{name}_token_id": getattr(ids, name) for name in ("img", "boi", "eoi", "eol", "eof")},
        "torch_dtype": dtype,
    }
