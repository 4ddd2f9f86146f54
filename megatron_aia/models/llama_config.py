"""The part of a config.json that describes a LLaMA-shaped decoder, read and written."""

from typing import Any

from megatron_aia.config import ModelConfig

FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
"""What the decoder of every family has in common."""
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
)
_ROPE_FIELDS = ("rope_type", "type", "rope_theta")
"""Of an embedding that is not scaled; others must say that nothing is changed."""


def read_llama(text: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ``ModelConfig`` that the decoder decides.

    Args:
        text: the decoder's part of config.json, completed by its class's defaults.

    Raises:
        ValueError: a value is of another architecture.
    """
    for name, value in FIXED.items():
        if text.get(name, value) != value:
            raise ValueError(f"config.json: {name} is {text[name]!r}, the decoder has {value!r}")
    for name in _SIZES:
        check_size(name, text[name])
    check_number("rms_norm_eps", text["rms_norm_eps"])
    heads, groups = text["num_attention_heads"], text["num_key_value_heads"]
    if text.get("head_dim") is not None:
        check_size("head_dim", text["head_dim"])
    default_size, rest = divmod(text["hidden_size"], heads)
    head_size = text.get("head_dim") or default_size
    if heads % groups or (rest and not text.get("head_dim")):
        raise ValueError(f"config.json: {heads} heads do not divide into {groups} groups")
    return {
        "num_layers": text["num_hidden_layers"],
        "hidden_size": text["hidden_size"],
        "ffn_hidden_size": text["intermediate_size"],
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "kv_channels": None if head_size == default_size else head_size,
        "max_position_embeddings": text["max_position_embeddings"],
        "norm_epsilon": text["rms_norm_eps"],
        "rotary_base": _rotary_base(text),
    }


def check_size(name: str, value: object) -> None:
    """Raise ValueError unless a size of config.json is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json: {name} is {value!r}, no whole number above 0")


def check_number(name: str, value: object) -> None:
    """Raise ValueError unless a value of config.json is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"config.json: {name} is {value!r}, no number above 0")


def part_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a part of config.json, empty where it is left out or null.

    Raises:
        ValueError: it is no object.
    """
    found = document.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(f"config.json: {name} is {found!r}, no object")
    return found


def _rotary_base(text: dict[str, Any]) -> int:
    """Return theta, which each version of Transformers writes in another place."""
    theta = text["rope_theta"]
    for place in ("rope_scaling", "rope_parameters"):
        rope = part_of(text, place)
        kind = rope.get("rope_type", rope.get("type", "default"))
        others = {name: value for name, value in rope.items() if name not in _ROPE_FIELDS}
        if kind != "default" or any(value not in (None, 1) for value in others.values()):
            raise ValueError(
                f"config.json: the rotary embedding is scaled ({place} {rope}), the decoder's is "
                "not"
            )
        theta = rope.get("rope_theta", theta)
    check_number("rope_theta", theta)
    if int(theta) != theta:
        raise ValueError(f"config.json: rope_theta {theta} is no whole number")
    return int(theta)


def write_llama(model: ModelConfig, vocab_size: int, dtype: str) -> dict[str, Any]:
    """Return the decoder's part of config.json, as every version of Transformers reads it."""
    head_size = {"head_dim": model.kv_channels} if model.kv_channels else {}
    theta = float(model.rotary_base)
    return {
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        **head_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": theta,
        "rope_scaling": None,
        **FIXED,
        "torch_dtype": dtype,
    }


def newer_fields(model: ModelConfig, dtype: str) -> dict[str, Any]:
    """Return what Transformers 5 reads in place of ``rope_theta`` and of ``torch_dtype``.

    It prefers its own fields, so one that was left from a source would outweigh the older ones.
    """
    rope = {"rope_type": "default", "rope_theta": float(model.rotary_base)}
    return {"rope_parameters": rope, "dtype": dtype}
