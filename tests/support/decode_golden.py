"""Tiny random models of Transformers that draw and answer, and what they write."""

import json
from pathlib import Path
from typing import Any

import torch

EMU3_TEXT, CODES, GRID = 40, 16, (3, 4)
PAD, EOL, EOF, BOS, EOS, IMG, BOI, EOI = (
    EMU3_TEXT + extra for extra in (0, 203, 204, 206, 207, 208, 209, 210)
)
FIRST = EMU3_TEXT + 211
EMU3_SIZE = FIRST + CODES

JANUS_TEXT, SIDE = 60, 3
SLOT = JANUS_TEXT + CODES
J_BOS, J_EOS, J_PAD, J_BOI, J_EOI, J_IMAGE = 50, 51, 52, 53, 54, 55


def emu3() -> Any:
    """Return a seeded Emu3 whose greedy pictures are known; see ``test_generation.py``."""
    import transformers

    text = {
        "vocab_size": EMU3_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 12345.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    vq = {
        "codebook_size": CODES,
        "base_channels": 32,
        "hidden_size": 64,
        "channel_multiplier": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [1],
    }
    names = {f"<|visual token {code:06d}|>": FIRST + code for code in range(CODES)}
    names |= {"<|extra_200|>": EOL, "<image>": EMU3_TEXT + 3}
    config = transformers.Emu3Config(text_config=text, vq_config=vq, vocabulary_map=names)
    return _seeded(transformers.Emu3ForConditionalGeneration(config), 1000, ())


def janus() -> Any:
    """Return a seeded Janus whose greedy pictures are known; see ``test_generation.py``."""
    import transformers

    vision = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "mlp_ratio": 2.0,
        "image_size": 24,
        "patch_size": 8,
        "num_image_tokens": SIDE * SIDE,
        "projection_dim": 32,
    }
    vq = {
        "num_embeddings": CODES,
        "embed_dim": 6,
        "base_channels": 32,
        "channel_multiplier": [1, 2],
        "num_res_blocks": 1,
        "latent_channels": 48,
        "projection_dim": 32,
        "image_token_embed_dim": 32,
        "num_patches": SIDE,
    }
    text = transformers.LlamaConfig(
        vocab_size=JANUS_TEXT,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        rms_norm_eps=1e-6,
        rope_theta=12345.0,
        tie_word_embeddings=False,
        bos_token_id=J_BOS,
        eos_token_id=J_EOS,
        pad_token_id=None,
    )
    config = transformers.JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=J_IMAGE,
        tie_word_embeddings=False,
    )
    return _seeded(transformers.JanusForConditionalGeneration(config), 2000, ("bias",))


def _seeded(model: Any, seed: int, not_norms: tuple[str, ...]) -> Any:
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        generator = torch.Generator().manual_seed(seed + number)
        is_norm = "norm" in name and not any(part in name for part in not_norms)
        drawn = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data = drawn + (1.0 if is_norm else 0.0)
    return model.eval()


def save(model: Any, folder: Path) -> Path:
    """Write a model as Transformers does, with the little of a tokeniser that a converter asks."""
    model.save_pretrained(folder)
    tokens = {"added_tokens": [{"id": J_IMAGE, "content": "<image_placeholder>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder
