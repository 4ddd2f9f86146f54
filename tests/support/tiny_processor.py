"""LLaVA and Chameleon with their processors from nothing but bytes: offline, in a second."""

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


CODES = [f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z" for i in range(16)]
"""Chameleon finds the codes of its images by these names."""


def byte_tokenizer(*more: str) -> Any:
    """Every byte of a text is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        additional_special_tokens=["<image>", *more],
    )


def llava_processor(template: str = TEMPLATE) -> Any:
    """An image of 28 x 28 pixels is 16 tokens."""
    tokenizer = byte_tokenizer()
    crop = {"height": 28, "width": 28}
    return transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=crop),
        tokenizer=tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def llava_model(processor: Any) -> Any:
    """Seeded random weights, peaked attention."""
    torch.manual_seed(5)
    text = transformers.LlamaConfig(
        **{"vocab_size": len(processor.tokenizer), "hidden_size": 32, "intermediate_size": 48},
        **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
        max_position_embeddings=512,
    )
    vision = transformers.CLIPVisionConfig(
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "image_size": 28, "patch_size": 7},
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    for name, weight in model.get_decoder().named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data.mul_(8)
    return model.eval()


def chameleon_processor() -> Any:
    """An image of 16 x 16 pixels is 64 tokens; it has no chat template."""
    return transformers.ChameleonProcessor(
        image_processor=transformers.ChameleonImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer=byte_tokenizer("<racm3:break>", "<eoss>", "<reserved08706>", *CODES),
        image_seq_length=64,
        image_token="<image>",
    )


def chameleon_model(processor: Any) -> Any:
    """Seeded random weights."""
    torch.manual_seed(6)
    tokenizer = processor.tokenizer
    names = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<image>", *CODES)}
    config = transformers.ChameleonConfig(
        **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48},
        **{"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
        max_position_embeddings=512,
        vq_config={
            **{"base_channels": 32, "embed_dim": 8, "num_embeddings": 16, "latent_channels": 8},
            **{"channel_multiplier": [1, 2], "num_res_blocks": 1, "attn_resolutions": None},
            "resolution": 16,
        },
        vocabulary_map=names,
    )
    return transformers.ChameleonForConditionalGeneration(config).eval()
