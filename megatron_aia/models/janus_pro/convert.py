"""Janus-Pro between Hugging Face and megatron-core: what makes each parameter, and which files."""

from megatron_aia.config import Config
from megatron_aia.models.backbone import padded_vocab_size
from megatron_aia.models.hugging_face import HFFormat
from megatron_aia.models.janus_pro.hf_config import model_config
from megatron_aia.models.janus_pro.hf_document import document
from megatron_aia.models.janus_pro.hf_names import JanusNames, export_names, find_names
from megatron_aia.models.janus_pro.hf_processor import processor_files
from megatron_aia.models.janus_pro.hf_reference import (
    own_logits,
    reference_inputs,
    reference_logits,
    reference_model,
    verify_cases,
)
from megatron_aia.models.janus_pro.settings import JanusModelConfig
from megatron_aia.models.llama_map import llama_map
from megatron_aia.models.param_map import (
    Direct,
    FusedQKV,
    ParamMap,
    StackedQKV,
    Vocabulary,
    linear_map,
    norm_map,
)


def weight_map(model: JanusModelConfig, names: JanusNames) -> dict[str, ParamMap]:
    """Return every parameter of the unsplit model and the tensors that make it."""
    table = llama_map(model, names.decoder, names.head, model.text_vocab_size)
    return table | _tower_map(model, names) | _image_map(model, names)


def _tower_map(model: JanusModelConfig, names: JanusNames) -> dict[str, ParamMap]:
    width, patch, slots = model.vision_hidden_size, model.patch_size, model.image_slots
    has_batch_axis = names.layout == "original"
    table: dict[str, ParamMap] = {
        "vision_model.patch_embedding.weight": Direct(
            f"{names.patch}.weight", (width, 3, patch, patch)
        ),
        "vision_model.patch_embedding.bias": Direct(f"{names.patch}.bias", (width,)),
        "vision_model.position_embedding": Direct(
            names.position, (slots, width), (1, slots, width) if has_batch_axis else None
        ),
    }
    for i in range(model.vision_num_layers):
        ours, theirs = f"vision_model.encoder.layers.{i}.", names.block.format(i)
        for kind, row_shape in (("weight", (width,)), ("bias", ())):
            table[f"{ours}self_attention.linear_qkv.{kind}"] = _tower_qkv(
                model, names, theirs, kind, row_shape
            )
        ffn = model.vision_ffn_hidden_size
        table |= norm_map(f"{ours}input_layernorm", theirs + names.norms[0], width)
        table |= linear_map(
            f"{ours}self_attention.linear_proj", theirs + names.attention_output, width, width
        )
        table |= norm_map(f"{ours}pre_mlp_layernorm", theirs + names.norms[1], width)
        table |= linear_map(f"{ours}mlp.linear_fc1", f"{theirs}mlp.fc1", ffn, width)
        table |= linear_map(f"{ours}mlp.linear_fc2", f"{theirs}mlp.fc2", width, ffn)
    return table | norm_map("vision_model.encoder.final_layernorm", names.last_norm, width)


def _tower_qkv(
    model: JanusModelConfig, names: JanusNames, block: str, kind: str, row_shape: tuple[int, ...]
) -> ParamMap:
    heads = model.vision_num_attention_heads
    head_size = model.vision_hidden_size // heads
    if names.layout == "original":
        return StackedQKV(f"{block}attn.qkv.{kind}", heads, head_size, row_shape)
    query, key, value = (f"{block}self_attn.{part}_proj.{kind}" for part in "qkv")
    return FusedQKV(query, key, value, heads, heads, head_size, row_shape)


def _image_map(model: JanusModelConfig, names: JanusNames) -> dict[str, ParamMap]:
    """Return what stands between images and the decoder, on both of its sides."""
    hidden, codes, channels = model.hidden_size, model.codebook_size, model.code_channels
    projections = (
        ("vision_projection", names.look_at, model.vision_hidden_size),
        ("generation_projection", names.draw, channels),
    )
    table: dict[str, ParamMap] = {
        "generation_embedding.weight": Direct(names.code_embedding, (codes, channels))
    }
    for ours, (first, second), width in projections:
        table |= linear_map(f"{ours}.encoder.linear_fc1", first, hidden, width)
        table |= linear_map(f"{ours}.encoder.linear_fc2", second, hidden, hidden)
    inner, outer = names.code_head
    table |= linear_map("generation_head.projection", inner, hidden, hidden)
    padded = padded_vocab_size(Config(model=model), codes, 1)
    for kind, row_shape in (("weight", (hidden,)), ("bias", ())):
        table[f"generation_head.output.{kind}"] = Vocabulary(
            f"{outer}.{kind}", codes, padded, row_shape
        )
    return table


_TOKENISER_FILES = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json")

FORMAT = HFFormat(
    model_types={"multi_modality": "original", "janus": "transformers"},
    find_names=find_names,
    export_names=export_names,
    model_config=model_config,
    weight_map=weight_map,
    document=document,
    verify_cases=verify_cases,
    reference_logits=reference_logits,
    reference_model=reference_model,
    reference_inputs=reference_inputs,
    own_logits=own_logits,
    files=(
        *(*_TOKENISER_FILES, "tokenizer_config.json"),
        *("preprocessor_config.json", "processor_config.json", "chat_template*"),
        "generation_config.json",
    ),
    shared_files=_TOKENISER_FILES,
    processor_files=processor_files,
)
