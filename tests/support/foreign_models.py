"""Tiny random models of Transformers with inputs, whose attention is far from uniform."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

TOKENS = 40
IMAGE_ID = 150
TEXT: dict[str, Any] = {
    **{"vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class ForeignModel:
    """A model with a batch of two rows of 40 tokens."""

    model: Any
    inputs: dict[str, Any]
    images: torch.Tensor
    """Positions of the image's tokens, the same in both rows."""


def _ids(num_images: int = 0, tokens: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Random text with images of ``tokens`` positions, each between a start and an end."""
    ids = torch.randint(1, 140, (2, TOKENS))
    for image in range(num_images):
        start = 5 + image * (tokens + 2)
        ids[:, start] = 151
        ids[:, start + 1 : start + 1 + tokens] = IMAGE_ID
        ids[:, start + 1 + tokens] = 152
    return ids, torch.nonzero(ids[0] == IMAGE_ID).flatten()


def _peaked(model: Any) -> Any:
    """Sharpen the maps: norms of queries and keys would undo what their weights do."""
    for name, weight in model.named_parameters():
        if any(part in name for part in ("q_proj.weight", "k_proj.weight")):
            weight.data.mul_(12)
        elif "q_norm" in name or "k_norm" in name:
            weight.data.mul_(2.5)
    return model.eval()


def emu3() -> ForeignModel:
    model = transformers.Emu3ForCausalLM(transformers.Emu3TextConfig(**TEXT))
    ids, _ = _ids()
    return ForeignModel(_peaked(model), {"input_ids": ids}, torch.arange(5, 21))


def llama() -> ForeignModel:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
    ids, _ = _ids()
    return ForeignModel(_peaked(model), {"input_ids": ids}, torch.arange(5, 21))


def qwen2_sliding() -> ForeignModel:
    """Two of three layers see 9 tokens."""
    config = transformers.Qwen2Config(
        **TEXT, use_sliding_window=True, sliding_window=9, max_window_layers=1
    )
    ids, _ = _ids()
    model = transformers.Qwen2ForCausalLM(config)
    return ForeignModel(_peaked(model), {"input_ids": ids}, torch.arange(21, 31))


def _qwen_vl(prefix: str, rope: dict[str, Any], patch: int, vision: dict[str, Any]) -> ForeignModel:
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**TEXT, "rope_scaling": rope, "head_dim": 8},
        vision_config={
            **{"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2},
            **{"out_hidden_size": 32, **vision},
        },
        **{"image_token_id": IMAGE_ID, "vision_start_token_id": 151, "vision_end_token_id": 152},
        video_token_id=153,
    )
    ids, images = _ids(num_images=2, tokens=4)  # 4 x 4 patches, four of them a token
    inputs = {
        "input_ids": ids,
        "pixel_values": torch.randn(4 * 16, 3 * 2 * patch * patch),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 4),
        "mm_token_type_ids": (ids == IMAGE_ID).int(),
    }
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    return ForeignModel(_peaked(model), inputs, images)


def qwen25_vl() -> ForeignModel:
    rope = {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]}
    vision = {"fullatt_block_indexes": [1], "window_size": 56}
    return _qwen_vl("Qwen2_5_VL", rope, 14, vision)


def qwen3_vl() -> ForeignModel:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True}
    vision = {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    return _qwen_vl("Qwen3VL", rope, 16, vision)


def llava() -> ForeignModel:
    vision = transformers.CLIPVisionConfig(
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "image_size": 28, "patch_size": 7},
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE_ID,
        vision_feature_layer=-2,
    )
    ids, images = _ids(num_images=1)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 28, 28)}
    model = transformers.LlavaForConditionalGeneration(config)
    return ForeignModel(_peaked(model), inputs, images)


def chameleon() -> ForeignModel:
    names = {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 101 + i for i in range(16)}
    config = transformers.ChameleonConfig(
        **TEXT,
        vq_config={
            **{"base_channels": 32, "embed_dim": 8, "num_embeddings": 16, "latent_channels": 8},
            **{"channel_multiplier": [1, 2], "num_res_blocks": 1, "attn_resolutions": None},
        },
        vocabulary_map={"<image>": 100, **names},
    )
    ids = torch.randint(1, 90, (2, TOKENS))
    model = transformers.ChameleonForConditionalGeneration(config)
    return ForeignModel(_peaked(model), {"input_ids": ids}, torch.arange(5, 21))


def janus() -> ForeignModel:
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config={
            **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "depth": 2},
            **{"image_size": 32, "patch_size": 8, "intermediate_size": 32, "projection_dim": 32},
            "num_image_tokens": 16,
        },
        vq_config={
            **{"embed_dim": 8, "num_embeddings": 16, "base_channels": 32, "num_patches": 4},
            **{"channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 8},
            **{"projection_dim": 32, "image_token_embed_dim": 32},
        },
        image_token_id=IMAGE_ID,
    )
    ids, images = _ids(num_images=1)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 32, 32)}
    model = transformers.JanusForConditionalGeneration(config)
    return ForeignModel(_peaked(model), inputs, images)


MODELS: dict[str, Callable[[], ForeignModel]] = {
    function.__name__: function
    for function in (*(emu3, llama, qwen2_sliding, qwen25_vl, qwen3_vl, llava, chameleon, janus),)
}
