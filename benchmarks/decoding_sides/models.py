"""Models with random weights in Transformers' form, and words for them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_aia.models.janus_pro.special_tokens import NAMES


@dataclass(frozen=True)
class Sizes:
    """Of a model and its pictures."""

    layers: int
    hidden: int
    side: int
    """Codes of a row, and rows."""
    text: int = 4096
    codes: int = 1024

    @property
    def decoder(self) -> dict[str, Any]:
        """Settings of the decoder, as Transformers calls them."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": 4 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64,
            "max_position_embeddings": 2 * self.side * (self.side + 1),
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        }


class Words:
    """Every byte is a token; special tokens stand behind the text's."""

    fingerprint = "bytes"

    def __init__(self, size: int) -> None:
        self.vocab_size = size

    def encode(self, text: str) -> list[int]:
        """See ``TextTokenizer``."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """See ``TextTokenizer``."""
        return bytes(i % 256 for i in ids).decode(errors="replace")

    def special_id(self, name: str) -> int:
        """See ``TextTokenizer``."""
        return 256 + list(NAMES.values()).index(name)


def emu3(sizes: Sizes) -> Any:
    """Return an Emu3 of Transformers whose image tokeniser is tiny."""
    import transformers

    first = sizes.text + 211
    names = {f"<|visual token {code:06d}|>": first + code for code in range(sizes.codes)}
    names |= {"<|extra_200|>": sizes.text + 203, "<image>": 3}
    text = {
        **sizes.decoder,
        "num_key_value_heads": sizes.hidden // 128,
        "vocab_size": first + sizes.codes,
        "pad_token_id": sizes.text,
        "bos_token_id": sizes.text + 206,
        "eos_token_id": sizes.text + 207,
        "attention_dropout": 0.0,
    }
    vq = {
        "codebook_size": sizes.codes,
        "base_channels": 32,
        "hidden_size": 64,
        "channel_multiplier": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [1],
    }
    config = transformers.Emu3Config(text_config=text, vq_config=vq, vocabulary_map=names)
    return transformers.Emu3ForConditionalGeneration(config)


def janus_pro(sizes: Sizes) -> Any:
    """Return a Janus of Transformers whose tower and image tokeniser are tiny."""
    import transformers

    vision = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "mlp_ratio": 2.0,
        "image_size": 8 * sizes.side,
        "patch_size": 8,
        "num_image_tokens": sizes.side**2,
        "projection_dim": sizes.hidden,
    }
    vq = {
        "num_embeddings": sizes.codes,
        "embed_dim": 8,
        "base_channels": 32,
        "channel_multiplier": [1, 2],
        "num_res_blocks": 1,
        "latent_channels": 48,
        "projection_dim": sizes.hidden,
        "image_token_embed_dim": sizes.hidden,
        "num_patches": sizes.side,
    }
    text = transformers.LlamaConfig(
        **sizes.decoder,
        num_key_value_heads=sizes.hidden // 64,
        vocab_size=sizes.text,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=None,
    )
    config = transformers.JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=261,
        tie_word_embeddings=False,
    )
    return transformers.JanusForConditionalGeneration(config)


def save(family: str, sizes: Sizes, folder: Path) -> None:
    """Write a seeded model, with the little of a tokeniser that the converter asks for."""
    torch.manual_seed(0)
    model = {"emu3": emu3, "janus_pro": janus_pro}[family](sizes)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            # Logits as far apart as a trained model's: greedy choices do not hang on a rounding.
            parameter.data *= 3
    model.save_pretrained(folder)
    tokens = {"added_tokens": [{"id": 261, "content": "<image_placeholder>"}]}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    (folder / "tokenizer_config.json").write_text("{}")
