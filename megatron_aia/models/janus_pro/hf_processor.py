"""Processor files for a layout that the source was not in: each library has its own classes.

What both do is the same: images are scaled to fit a square, padded with grey, and normalised.
"""

import json
from pathlib import Path

from megatron_aia.models.hugging_face import JSON, HFTarget
from megatron_aia.models.janus_pro.settings import JanusModelConfig

_IMAGE, _IMAGE_START, _IMAGE_END = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
_MIN_SIDE = 14
_NORMALISE: JSON = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}


def processor_files(target: HFTarget) -> dict[str, JSON]:
    """Return the files of the other layout's processor by name."""
    files = (_original if target.layout == "original" else _transformers)(target.model)
    settings = _read(target.hf_assets / "tokenizer_config.json")
    if settings:
        if target.layout == "transformers":
            settings["extra_special_tokens"] = {
                "image_token": _IMAGE,
                "boi_token": _IMAGE_START,
                "eoi_token": _IMAGE_END,
            }
        files["tokenizer_config.json"] = settings
    return files


def _original(model: JanusModelConfig) -> dict[str, JSON]:
    return {
        "preprocessor_config.json": {
            "image_processor_type": "VLMImageProcessor",
            "processor_class": "VLChatProcessor",
            "image_size": model.image_size,
            "min_size": _MIN_SIDE,
            "do_normalize": True,
            **_NORMALISE,
        },
        "processor_config.json": {
            "processor_class": "VLChatProcessor",
            "sft_format": "deepseek",
            "image_tag": _IMAGE,
            "num_image_tokens": model.image_slots,
            "add_special_token": False,
            "mask_prompt": True,
            "ignore_id": -100,
        },
    }


def _transformers(model: JanusModelConfig) -> dict[str, JSON]:
    return {
        "preprocessor_config.json": {
            "image_processor_type": "JanusImageProcessor",
            "processor_class": "JanusProcessor",
            "size": {"height": model.image_size, "width": model.image_size},
            "min_size": _MIN_SIDE,
            "resample": 3,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_pad": True,
            **_NORMALISE,
        },
        "processor_config.json": {
            "processor_class": "JanusProcessor",
            "num_image_tokens": model.image_slots,
        },
    }


def find_image_token_id(target: HFTarget) -> int:
    """Return the id that stands for an image; the last id where no tokeniser says one."""
    tokens = _read(target.hf_assets / "tokenizer.json").get("added_tokens", [])
    ids = [token["id"] for token in tokens if token.get("content") == _IMAGE]
    return int(ids[0]) if ids else target.model.text_vocab_size - 1


def _read(path: Path) -> JSON:
    content: JSON = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
