"""Tiny random Janus checkpoints as Hugging Face folders, in both layouts."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from megatron_aia.models.janus_pro import hf_config

Kind = Literal["transformers", "original", "original .bin"]

TEXT_SIZE, CODEBOOK_SIZE = 311, 67
TOWER = {"width": 20, "layers": 3, "heads": 4, "ffn": 54, "patch": 8}
TOWER_NAME = "siglip_of_the_tests"
IMAGE_TOKEN = "<image_placeholder>"
IMAGE_TOKEN_ID = 301


@dataclass(frozen=True)
class JanusFixture:
    """What is written; sizes that nothing divides but what must."""

    kind: Kind
    groups: int = 4
    head_size: int | None = None
    dtype: torch.dtype = torch.float32


def know_the_tower() -> None:
    """Name the tower of the tests, as the authors' table names theirs."""
    hf_config.TOWERS[TOWER_NAME] = TOWER


def text_values(fixture: JanusFixture) -> dict[str, Any]:
    values = {
        "vocab_size": TEXT_SIZE,
        "hidden_size": 40,
        "intermediate_size": 52,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": fixture.groups,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-3,
        "tie_word_embeddings": False,
        "rope_theta": 12345.0,
    }
    return {**values, "head_dim": fixture.head_size} if fixture.head_size else values


def build_model(fixture: JanusFixture) -> Any:
    """Return Transformers' model with weights wide enough for a wrong detail to show."""
    import transformers

    vision = {
        "hidden_size": TOWER["width"],
        "num_hidden_layers": TOWER["layers"],
        "num_attention_heads": TOWER["heads"],
        "mlp_ratio": TOWER["ffn"] / TOWER["width"],
        "image_size": 40,
        "patch_size": TOWER["patch"],
        "num_image_tokens": 25,
        "projection_dim": 40,
    }
    codes = {
        "num_embeddings": CODEBOOK_SIZE,
        "embed_dim": 6,
        "base_channels": 32,
        "channel_multiplier": [1, 2],
        "num_res_blocks": 1,
        "latent_channels": 48,
        "projection_dim": 40,
        "image_token_embed_dim": 40,
    }
    torch.manual_seed(0)
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(**text_values(fixture)),
        vision_config=vision,
        vq_config=codes,
        image_token_id=IMAGE_TOKEN_ID,
        tie_word_embeddings=False,
    )
    model = transformers.JanusForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name and "bias" not in name else 0.0, 0.2)
    return model.to(fixture.dtype).eval()


def write_checkpoint(fixture: JanusFixture, folder: Path) -> Path:
    """Write the checkpoint and a few files of a tokeniser."""
    model = build_model(fixture)
    model.save_pretrained(folder, max_shard_size="200KB")
    tokens = {"added_tokens": [{"id": IMAGE_TOKEN_ID, "content": IMAGE_TOKEN}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 256}))
    if fixture.kind == "transformers":
        return folder
    for file in folder.glob("*safetensors*"):
        file.unlink()
    state = original_state(model)
    if fixture.kind == "original .bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(original_config(fixture)))
    return folder


def original_config(fixture: JanusFixture) -> dict[str, Any]:
    """Return config.json in the authors' form."""
    mlp = {"depth": 2, "projector_type": "mlp_gelu", "n_embed": 40}
    head = {"image_token_embed": 40, "image_token_size": CODEBOOK_SIZE, "n_embed": 40}
    tower = {"image_size": 40, "model_name": TOWER_NAME, "select_layer": -1}

    def part(name: str, params: dict[str, Any]) -> dict[str, Any]:
        return {"cls": name, "params": params}

    return {
        "model_type": "multi_modality",
        "aligner_config": part("MlpProjector", {**mlp, "input_dim": TOWER["width"]}),
        "gen_aligner_config": part("MlpProjector", {**mlp, "input_dim": 6}),
        "gen_head_config": part("vision_head", head),
        "gen_vision_config": part("VQ-16", {"image_token_size": CODEBOOK_SIZE, "n_embed": 6}),
        "vision_config": part("CLIPVisionTower", {**tower, "select_feature": "same"}),
        "language_config": {"model_type": "llama", **text_values(fixture)},
    }


_RULES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.vision_model\.encoder\.layers\.", "vision_model.vision_tower.blocks."),
    (r"^model\.vision_model\.post_layernorm\.", "vision_model.vision_tower.norm."),
    (
        r"^model\.vision_model\.embeddings\.patch_embedding\.",
        "vision_model.vision_tower.patch_embed.proj.",
    ),
    (
        r"^model\.vision_model\.embeddings\.position_embedding\.weight",
        "vision_model.vision_tower.pos_embed",
    ),
    (r"(tower\.blocks\.\d+)\.layer_norm", r"\1.norm"),
    (r"(tower\.blocks\.\d+)\.self_attn\.projection_layer", r"\1.attn.proj"),
    (r"^model\.aligner\.fc1", "aligner.layers.0"),
    (r"^model\.aligner\.hidden_layers\.0", "aligner.layers.2"),
    (r"^model\.generation_aligner\.fc1", "gen_aligner.layers.0"),
    (r"^model\.generation_aligner\.hidden_layers\.0", "gen_aligner.layers.2"),
    (r"^model\.generation_embeddings", "gen_embed"),
    (r"^model\.generation_head\.proj_out", "gen_head.output_mlp_projector"),
    (r"^model\.generation_head\.vision_head", "gen_head.vision_head"),
    (r"^model\.vqmodel\.encoder\.down\.", "gen_vision_model.encoder.conv_blocks."),
    (r"^model\.vqmodel\.decoder\.up\.", "gen_vision_model.decoder.conv_blocks."),
    (r"^model\.vqmodel\.", "gen_vision_model."),
    (r"(conv_blocks\.\d+)\.block\.", r"\1.res."),
    (r"mid\.block_1\.", "mid.0."),
    (r"mid\.attn_1\.", "mid.1."),
    (r"mid\.block_2\.", "mid.2."),
)


def original_name(name: str) -> str:
    """Return the authors' name of a tensor of Transformers' model."""
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def original_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights by the authors' names, with what only their checkpoints hold."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        state[original_name(name)] = tensor.contiguous()
    position = "vision_model.vision_tower.pos_embed"
    state[position] = state[position][None]
    for i in range(TOWER["layers"]):
        for kind in ("weight", "bias"):
            block = f"vision_model.vision_tower.blocks.{i}."
            parts = [state.pop(f"{block}self_attn.{x}_proj.{kind}") for x in "qkv"]
            state[f"{block}attn.qkv.{kind}"] = torch.cat(parts)
    state["vision_model.vision_tower.attn_pool.latent"] = torch.randn(1, 1, TOWER["width"])
    state["gen_vision_model.quantize.codebook_used"] = torch.randn(65)
    return state
