"""A tiny UniFork in the authors' layout, and what their code gave for it.

Weights are drawn by name. The numbers in ``golden/unifork_11.npz`` are outputs of tliby/UniFork at
2c5b757 with these weights.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from megatron_aia.models.unifork.hf_config import model_config
from megatron_aia.models.unifork.weight_map import find_names, weight_map

GOLDEN = Path(__file__).parent / "golden" / "unifork_11.npz"
SEED = 11
IMAGE, PAD = -200, 95
"""What stands for an image, and for padding, in the golden ids."""
CONFIG: dict[str, Any] = {
    "architectures": ["LlavaQwen2ForCausalLM"],
    "model_type": "llava_qwen2",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "hidden_act": "silu",
}
TOWER: dict[str, Any] = {
    "rqtransformer": {
        "block_size": [16, 16, 4],
        "embed_dim": 48,
        "embed_dim_out": 32,
        "head": {"block": {"n_head": 4}, "n_layer": 2},
        "input_embed_dim_1": 24,
        "input_embed_dim_2": 32,
        "vocab_size": 40,
    },
    "siglip_vision": {"image_size": 64, "patch_size": 4},
}
PASSENGER = "model.vision_tower.vision_tower.rqvaesiglip.decoder.conv_out.bias"


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the weight of a name: norms lie around 1, the output matrix is the embedding."""
    name = name.replace("lm_head.weight", "model.embed_tokens.weight")
    digest = hashlib.sha256(f"{SEED}:{name}".encode()).digest()
    random = np.random.RandomState(int.from_bytes(digest[:4], "little"))
    values = random.standard_normal(shape)
    if name.endswith("weight") and ("norm" in name or ".ln" in name):
        return torch.from_numpy((1 + 0.1 * values).astype(np.float32))
    scale = 0.5 if "codebooks" in name else 0.25
    return torch.from_numpy((scale * values).astype(np.float32))


def write_unifork(folder: Path) -> dict[str, torch.Tensor]:
    """Write the checkpoint and return its tensors."""
    model = model_config({**CONFIG, "vision_tower_config": TOWER})
    table = weight_map(model, find_names({"model.norm_gen.weight", "lm_head.weight"}))
    shapes = {name: shape for entry in table.values() for name, shape in entry.sources.items()}
    tensors = {name: draw(name, shape) for name, shape in {**shapes, PASSENGER: (3,)}.items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "vision_tower_config.json").write_text(json.dumps(TOWER))
    return tensors
