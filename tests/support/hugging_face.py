"""Tiny random Emu3 checkpoints as Hugging Face folders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

from support.runs import VOCAB_SIZE
from support.tiny_data import CODEBOOK_SIZE

Kind = Literal["transformers", "in memory", "text model", "original", "original .bin"]


@dataclass(frozen=True)
class Fixture:
    """What is written; sizes that nothing divides but what must."""

    kind: Kind
    groups: int = 2
    head_size: int | None = None
    dtype: torch.dtype = torch.float32


def text_values(fixture: Fixture) -> dict[str, Any]:
    values = {
        "vocab_size": VOCAB_SIZE + 211 + CODEBOOK_SIZE,
        "hidden_size": 40,
        "intermediate_size": 52,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": fixture.groups,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-3,
        "pad_token_id": VOCAB_SIZE,
        "bos_token_id": VOCAB_SIZE + 206,
        "eos_token_id": VOCAB_SIZE + 207,
        "attention_dropout": 0.2,
        "tie_word_embeddings": False,
        "rope_theta": 12345.0,
    }
    return {**values, "head_dim": fixture.head_size} if fixture.head_size else values


def build_model(fixture: Fixture) -> Any:
    """Return Transformers' model with weights wide enough for a wrong detail to show."""
    import transformers

    text = text_values(fixture)
    torch.manual_seed(0)
    if fixture.kind in ("transformers", "in memory"):
        vq = {"codebook_size": CODEBOOK_SIZE, "base_channels": 32, "hidden_size": 64}
        vq |= {"channel_multiplier": [1, 2], "num_res_blocks": 1, "attn_resolutions": [1]}
        config = transformers.Emu3Config(
            text_config=text, vq_config=vq, vocabulary_map={"<image>": VOCAB_SIZE + 3}
        )
        model = transformers.Emu3ForConditionalGeneration(config)
    else:
        model = transformers.Emu3ForCausalLM(transformers.Emu3TextConfig(**text))
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model.to(fixture.dtype).eval()


def write_checkpoint(fixture: Fixture, folder: Path) -> Path:
    """Write the checkpoint and a few files of a tokeniser."""
    model = build_model(fixture)
    model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "README.md").write_text("not copied")
    if fixture.kind in ("transformers", "text model"):
        return folder
    for file in folder.glob("*safetensors*"):
        file.unlink()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if fixture.kind == "original .bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    if fixture.kind != "in memory":
        config = {"model_type": "Emu3", "hidden_act": "silu", **text_values(fixture)}
        config["torch_dtype"] = str(fixture.dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a folder."""
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    for file in folder.glob("*.bin"):
        tensors |= torch.load(file, weights_only=True)
    return tensors
