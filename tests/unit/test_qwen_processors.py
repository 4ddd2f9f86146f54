"""Qwen's processors, which need torchvision: spans and intensities of a talk with two images."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support.tiny_processor import byte_tokenizer

from megatron_aia.aia.roles import Task
from megatron_aia.measurement.processor_inputs import image_token_ids, understanding_inputs
from megatron_aia.measurement.recorder import IntensityRecorder
from megatron_aia.shards.raw_sample import RawSample, Turn

pytest.importorskip("torchvision", reason="the processors of Qwen2.5-VL and Qwen3-VL need it")

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION = {
    "Qwen2_5_VL": {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
    "Qwen3VL": {
        "patch_size": 16,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    },
}


class NoisePicture:
    def __init__(self, height: int, width: int) -> None:
        self._shape = (height, width, 3)

    def decode(self) -> np.ndarray:
        return np.random.default_rng(self._shape[0]).integers(0, 255, self._shape).astype(np.uint8)

    def pixel_size(self) -> tuple[int, int]:
        return self._shape[1], self._shape[0]


def build(name: str) -> tuple[Any, Any]:
    """Return a tiny model with random weights, and its processor."""
    names = ("image_pad", "video_pad", "vision_start", "vision_end", "im_start", "im_end")
    tokenizer = byte_tokenizer(*(f"<|{each}|>" for each in names))
    ids = {
        f"{each}_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for each, token in (
            *(("image_token", "image_pad"), ("video_token", "video_pad")),
            *(("vision_start_token", "vision_start"), ("vision_end_token", "vision_end")),
        )
    }
    text = {
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48},
        **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"max_position_embeddings": 512, "head_dim": 8, "bos_token_id": 0, "eos_token_id": 1},
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [1, 1, 2],
        },
    }
    vision = {
        **{"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2},
        **{"spatial_merge_size": 2, "out_hidden_size": 32},
        **VISION[name],
    }
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=vision, **ids)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    patch = vision["patch_size"]
    videos = {"Qwen2_5_VL": "Qwen2VLVideoProcessor"}.get(name, f"{name}VideoProcessor")
    processor = getattr(transformers, f"{name}Processor")(
        image_processor=transformers.Qwen2VLImageProcessor(
            patch_size=patch,
            merge_size=2,
            min_pixels=(2 * patch) ** 2,
            max_pixels=9 * (2 * patch) ** 2,
        ),
        tokenizer=tokenizer,
        video_processor=getattr(transformers, videos)(),
        chat_template=TEMPLATE,
    )
    return model, processor


@pytest.mark.parametrize("name", VISION)
def test_equal_to_eager_maps(name: str) -> None:
    model, processor = build(name)
    turns = (
        *(Turn("human", "<image>What? <image>"), Turn("gpt", "A cat")),
        *(Turn("human", "More"), Turn("gpt", "No")),
    )
    pictures = (NoisePicture(60, 90), NoisePicture(64, 64))
    sample = RawSample("a", Task.UNDERSTANDING, turns, pictures)
    found = understanding_inputs(processor, sample, image_token_ids(model.config), 512)
    queries, keys = found.term.queries, found.term.keys
    assert processor.tokenizer.decode(found.inputs["input_ids"][0][queries]) == "A catNo"
    grids = found.inputs["image_grid_thw"]
    assert len(keys) == int(grids.prod(-1).sum()) // 4
    measured = IntensityRecorder(model).measure(found.inputs, [found.term])[0]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**found.inputs, output_attentions=True, use_cache=False).attentions
    expected = [m[0][:, queries][:, :, keys].double().sum(-1).mean().item() for m in maps]
    assert measured.tolist() == pytest.approx(expected, abs=1e-6)
