"""Emu3 between Hugging Face and megatron-core: names, weights, files.

==============  =====================  ============================  ==============
layout          decoder                head                          image tokeniser
==============  =====================  ============================  ==============
original        ``model.``             ``lm_head.``                  another repository
transformers    ``text_model.model.``  ``text_model.lm_head.``       ``vqmodel.``
the same, in    ``model.text_model.``  ``lm_head.``                  ``model.vqmodel.``
memory
its text model  ``model.``             ``lm_head.``                  none
==============  =====================  ============================  ==============

Every version of Transformers reads the second row; those before 4.52 read no other.
"""

from collections.abc import Set

from megatron_aia.config import Config, ModelConfig
from megatron_aia.models.backbone import padded_vocab_size
from megatron_aia.models.emu3.hf_config import document, model_config
from megatron_aia.models.emu3.hf_reference import reference_logits
from megatron_aia.models.emu3.vocabulary import Emu3Vocabulary
from megatron_aia.models.hugging_face import HFFormat, HFLayout, HFNames
from megatron_aia.models.param_map import Direct, FusedQKV, GatedMLP, ParamMap, Vocabulary

_PLAIN = HFNames("model.", "lm_head.weight")
_ON_DISK = HFNames("text_model.model.", "text_model.lm_head.weight", "vqmodel.")
_IN_MEMORY = HFNames("model.text_model.", "lm_head.weight", "model.vqmodel.")


def find_names(names: Set[str]) -> HFNames:
    """Return the naming of a checkpoint.

    Raises:
        ValueError: it is none of Emu3's.
    """
    for candidate in (_ON_DISK, _IN_MEMORY, _PLAIN):
        if f"{candidate.decoder}embed_tokens.weight" in names:
            return candidate
    raise ValueError("the tensors have no names of an Emu3 checkpoint")


def export_names(layout: HFLayout, with_carried: bool) -> HFNames:
    """Return the naming to write; Transformers' whole model needs its image tokeniser."""
    return _ON_DISK if layout == "transformers" and with_carried else _PLAIN


def weight_map(model: ModelConfig, names: HFNames) -> dict[str, ParamMap]:
    """Return every parameter of the unsplit model and the tensors that make it."""
    hidden = model.hidden_size
    real = vocab_size(model)
    padded = padded_vocab_size(Config(model=model), real, 1)
    table: dict[str, ParamMap] = {
        "embedding.word_embeddings.weight": Vocabulary(
            f"{names.decoder}embed_tokens.weight", real, padded, hidden
        )
    }
    for i in range(model.num_layers):
        ours = f"decoder.layers.{i}."
        table |= _layer_map(model, f"{names.decoder}layers.{i}.", ours)
    table["decoder.final_layernorm.weight"] = Direct(f"{names.decoder}norm.weight", (hidden,))
    table["output_layer.weight"] = Vocabulary(names.head, real, padded, hidden)
    return table


def _layer_map(model: ModelConfig, hf: str, ours: str) -> dict[str, ParamMap]:
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    heads, groups, head_size = model.num_attention_heads, model.num_query_groups, model.head_size
    query, key, value = (f"{hf}self_attn.{part}_proj.weight" for part in "qkv")
    gate, up, down = (f"{hf}mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
    output = f"{hf}self_attn.o_proj.weight"
    return {
        f"{ours}input_layernorm.weight": Direct(f"{hf}input_layernorm.weight", (hidden,)),
        f"{ours}self_attention.linear_qkv.weight": FusedQKV(
            query, key, value, groups, heads, head_size, hidden
        ),
        f"{ours}self_attention.linear_proj.weight": Direct(output, (hidden, heads * head_size)),
        f"{ours}pre_mlp_layernorm.weight": Direct(
            f"{hf}post_attention_layernorm.weight", (hidden,)
        ),
        f"{ours}mlp.linear_fc1.weight": GatedMLP(gate, up, ffn, hidden),
        f"{ours}mlp.linear_fc2.weight": Direct(down, (hidden, ffn)),
    }


def vocab_size(model: ModelConfig) -> int:
    """Return the number of ids."""
    return Emu3Vocabulary(model.text_vocab_size, model.codebook_size).size


FORMAT = HFFormat(
    model_types={"Emu3": "original", "emu3": "transformers", "emu3_text_model": "transformers"},
    find_names=find_names,
    export_names=export_names,
    model_config=model_config,
    weight_map=weight_map,
    document=document,
    vocab_size=vocab_size,
    reference=reference_logits,
    files=(
        *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
        *("chat_template*", "preprocessor_config.json", "processor_config.json"),
        *("generation_config.json", "emu3.tiktoken", "emu3_vision_tokens.txt", "*_emu3*.py"),
    ),
)
