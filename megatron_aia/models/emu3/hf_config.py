"""Emu3's config.json, read and written."""

from typing import Any

from megatron_aia.config import ModelConfig
from megatron_aia.models.emu3.vocabulary import Emu3Vocabulary
from megatron_aia.models.hugging_face import JSON, HFTarget
from megatron_aia.models.llama_config import (
    check_size,
    newer_fields,
    part_of,
    read_llama,
    write_llama,
)

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
    "rope_theta": 1_000_000,
    "pad_token_id": 151_643,
}
_SPECIAL_TOKENS = Emu3Vocabulary(1, 1).size - 2


def model_config(document: JSON) -> ModelConfig:
    """Read the architecture from a config.json.

    Raises:
        ValueError: a value is of another architecture than Emu3's.
    """
    own = part_of(document, "text_config") if "text_config" in document else document
    text = {**_DEFAULTS, **own}
    fields = read_llama(text)
    pad, vocab_size = text["pad_token_id"], text["vocab_size"]
    check_size("pad_token_id", pad)
    codebook_size = vocab_size - pad - _SPECIAL_TOKENS
    stated = part_of(document, "vq_config").get("codebook_size", codebook_size)
    if codebook_size < 1 or stated != codebook_size:
        raise ValueError(
            f"config.json: vocab_size {vocab_size} with pad_token_id {pad} leaves {codebook_size} "
            f"image codes, and the codebook has {stated}"
        )
    return ModelConfig(model="emu3", **fields, text_vocab_size=pad, codebook_size=codebook_size)


def document(target: HFTarget) -> JSON:
    """Return a config.json.

    Raises:
        ValueError: the layout cannot express the model.
    """
    model, base = target.model, target.base
    whole = base is not None and "text_config" in base
    if target.layout == "transformers" and target.passthrough and not whole:
        raise ValueError("the image tokeniser has no config.json beside it")
    if target.layout == "original" and model.kv_channels:
        raise ValueError("the original layout has no head size of its own (--hf-layout original)")
    text = _text_document(model, target.dtype)
    dropout = {"attention_dropout": model.attention_dropout}
    if target.layout == "original":
        classes = {
            "AutoConfig": "configuration_emu3.Emu3Config",
            "AutoModelForCausalLM": "modeling_emu3.Emu3ForCausalLM",
        }
        return {"auto_map": classes, **dropout, **(base or {}), **text, "model_type": "Emu3"}
    text |= {"model_type": "emu3_text_model", **newer_fields(model, target.dtype)}
    if not target.passthrough:
        return {**dropout, **(base if base and not whole else {}), **text}
    assert base is not None
    inner = {**base["text_config"], **text}
    types = {"torch_dtype": target.dtype, "dtype": target.dtype}
    return {**base, "text_config": inner, **types, "tie_word_embeddings": False}


def _text_document(model: ModelConfig, dtype: str) -> JSON:
    ids = Emu3Vocabulary(model.text_vocab_size, model.codebook_size)
    return {
        "architectures": ["Emu3ForCausalLM"],
        **write_llama(model, ids.size, dtype),
        "pad_token_id": ids.pad,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos,
        **{f"{name}_token_id": getattr(ids, name) for name in ("img", "boi", "eoi", "eol", "eof")},
    }
