"""A LLaVA model and processor from nothing but bytes: offline, in a second."""

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


def llava_processor(template: str = TEMPLATE) -> Any:
    """Every byte of a text is a token; an image of 28 x 28 pixels is 16."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        additional_special_tokens=["<image>"],
    )
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
