"""The weight map of the decoder that the families share: LLaMA's names to megatron-core's."""

from megatron_aia.config import Config, ModelConfig
from megatron_aia.models.backbone import padded_vocab_size
from megatron_aia.models.param_map import Direct, FusedQKV, GatedMLP, ParamMap, Vocabulary


def llama_map(model: ModelConfig, prefix: str, head: str, vocab_size: int) -> dict[str, ParamMap]:
    """Return every parameter of the unsplit decoder and the tensors that make it.

    Args:
        model: architecture.
        prefix: of the decoder's tensors, as ``model.``.
        head: name of the output matrix; not there where it is the embedding.
        vocab_size: ids before padding.
    """
    hidden = model.hidden_size
    padded = padded_vocab_size(Config(model=model), vocab_size, 1)
    table: dict[str, ParamMap] = {
        "embedding.word_embeddings.weight": Vocabulary(
            f"{prefix}embed_tokens.weight", vocab_size, padded, (hidden,)
        )
    }
    for i in range(model.num_layers):
        table |= layer_map(model, f"{prefix}layers.{i}.", f"decoder.layers.{i}.")
    table["decoder.final_layernorm.weight"] = Direct(f"{prefix}norm.weight", (hidden,))
    if model.untie_embeddings_and_output_weights:
        table["output_layer.weight"] = Vocabulary(head, vocab_size, padded, (hidden,))
    return table


def layer_map(model: ModelConfig, hf: str, ours: str) -> dict[str, ParamMap]:
    """Return the parameters of one layer, whose names begin with ``ours`` and ``hf``."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    heads, groups, head_size = model.num_attention_heads, model.num_query_groups, model.head_size
    gate, up, down = (f"{hf}mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
    output = f"{hf}self_attn.o_proj.weight"
    table: dict[str, ParamMap] = {
        f"{ours}input_layernorm.weight": Direct(f"{hf}input_layernorm.weight", (hidden,)),
        f"{ours}self_attention.linear_proj.weight": Direct(output, (hidden, heads * head_size)),
        f"{ours}pre_mlp_layernorm.weight": Direct(
            f"{hf}post_attention_layernorm.weight", (hidden,)
        ),
        f"{ours}mlp.linear_fc1.weight": GatedMLP(gate, up, ffn, hidden),
        f"{ours}mlp.linear_fc2.weight": Direct(down, (hidden, ffn)),
    }
    rows = {"weight": (hidden,)} | ({"bias": ()} if model.add_qkv_bias else {})
    for kind, row_shape in rows.items():
        query, key, value = (f"{hf}self_attn.{part}_proj.{kind}" for part in "qkv")
        table[f"{ours}self_attention.linear_qkv.{kind}"] = FusedQKV(
            query, key, value, groups, heads, head_size, row_shape
        )
    return table
