"""Transformers' own Janus, to compare with."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from megatron_aia.models.backbone import PackedGPTModel, packed_causal_mask
from megatron_aia.models.hugging_face import HFSource, HFTarget, VerifyCase
from megatron_aia.models.janus_pro.hf_config import model_config
from megatron_aia.models.janus_pro.hf_document import document
from megatron_aia.models.janus_pro.settings import JanusModelConfig
from megatron_aia.models.janus_pro.vocabulary import JanusVocabulary
from megatron_aia.runtime.optional import import_optional

_TEXT, _PADDING = 64, 17

# Written apart from the weight map, which would otherwise be compared with itself.
_TOWER = r"^vision_model\.vision_tower\."
_RENAMED = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (rf"{_TOWER}pos_embed$", "model.vision_model.embeddings.position_embedding.weight"),
    (rf"{_TOWER}patch_embed\.proj\.", "model.vision_model.embeddings.patch_embedding."),
    (rf"{_TOWER}norm\.", "model.vision_model.post_layernorm."),
    (
        rf"{_TOWER}blocks\.(\d+)\.norm([12])\.",
        r"model.vision_model.encoder.layers.\1.layer_norm\2.",
    ),
    (
        rf"{_TOWER}blocks\.(\d+)\.attn\.proj\.",
        r"model.vision_model.encoder.layers.\1.self_attn.projection_layer.",
    ),
    (rf"{_TOWER}blocks\.(\d+)\.", r"model.vision_model.encoder.layers.\1."),
    (r"^aligner\.layers\.0\.", "model.aligner.fc1."),
    (r"^aligner\.layers\.2\.", "model.aligner.hidden_layers.0."),
    (r"^gen_aligner\.layers\.0\.", "model.generation_aligner.fc1."),
    (r"^gen_aligner\.layers\.2\.", "model.generation_aligner.hidden_layers.0."),
    (r"^gen_embed\.", "model.generation_embeddings."),
    (r"^gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
    (r"^gen_head\.vision_head\.", "model.generation_head.vision_head."),
)
_NOT_COMPARED = ("gen_vision_model.", "vision_model.vision_tower.attn_pool.")


def verify_cases(model: JanusModelConfig) -> list[VerifyCase]:
    """Return random text, text before image codes, and images before text; one is padded."""
    ids = JanusVocabulary(model.text_vocab_size, model.codebook_size)
    slots, side = model.image_slots, model.image_size
    generator = torch.Generator().manual_seed(0)

    def draw(first: int, last: int, length: int) -> torch.Tensor:
        return torch.randint(first, last, (2, length), generator=generator)

    text = draw(0, ids.first_code, _TEXT)
    codes = draw(ids.first_code, ids.image_slot, slots)
    seen = torch.full((2, slots), ids.image_slot)
    images = torch.randint(256, (2, 3, side, side), generator=generator, dtype=torch.uint8)
    # Transformers takes the id of its image token, one of the last, for a part of an image.
    words = draw(0, ids.first_code * 3 // 4, _TEXT)
    before, after = words[:, : _TEXT // 2], words[:, _TEXT // 2 :]

    def padded(tokens: torch.Tensor) -> torch.Tensor:
        segments = torch.zeros_like(tokens)
        segments[1, :_PADDING] = -1
        return segments

    generation = torch.cat([text, codes], dim=1)
    understanding = torch.cat([before, seen, after], dim=1)
    return [
        VerifyCase("text", text, padded(text)),
        VerifyCase("generation", generation, padded(generation)),
        VerifyCase("understanding", understanding, padded(understanding), images),
    ]


def _draws(case: VerifyCase) -> bool:
    return case.name == "generation"


@torch.no_grad()
def own_logits(model: PackedGPTModel, case: VerifyCase) -> torch.Tensor:
    """Return this project's logits ``[b, s, v]``: of image codes for generation, else of text."""
    hidden = model(
        case.tokens, case.position_ids, packed_causal_mask(case.segment_ids), case.images
    )
    janus: Any = model
    logits: torch.Tensor = (janus.code_logits if _draws(case) else janus.text_logits)(hidden)
    return logits


def reference_model(source: HFSource) -> Any:
    """Return Transformers' model.

    Transformers has no class for the authors' layout; its weights are renamed for its own.
    """
    transformers = import_optional("transformers", "hf")
    if "language_config" in source.config:
        return _from_original(transformers, source)
    return transformers.JanusForConditionalGeneration.from_pretrained(
        source.folder, local_files_only=True, trust_remote_code=False
    )


def reference_inputs(
    model: Any, config: JanusModelConfig, tokens: torch.Tensor, images: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Return the inputs of that model, which embeds the codes of a drawn image apart.

    Args:
        model: of ``reference_model``.
        config: its architecture.
        tokens: int64 ``[1, s]``, text and either images to look at or one that is drawn.
        images: uint8 ``[n, 3, side, side]`` to look at.
    """
    ids = JanusVocabulary(config.text_vocab_size, config.codebook_size)
    slots = tokens == ids.image_slot
    drawn = (tokens >= ids.first_code) & ~slots
    if drawn.any():
        codes = tokens[:, drawn[0]] - ids.first_code
        embedded = model.get_input_embeddings()(tokens.masked_fill(drawn, 0))
        embedded[drawn] = model.prepare_embeddings_for_image_generation(codes)[0]
        return {"inputs_embeds": embedded}
    inputs = {"input_ids": tokens.masked_fill(slots, model.config.image_token_id)}
    if images is not None:
        inputs["pixel_values"] = _pixels(images, model.dtype)
    return inputs


def _pixels(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return ((images.float() / 255 - 0.5) / 0.5).to(dtype)


@torch.no_grad()
def reference_logits(source: HFSource, inputs: Sequence[VerifyCase]) -> list[torch.Tensor]:
    """Return Transformers' fp32 logits ``[b, s, v]`` of each case."""
    model = reference_model(source).float().eval()
    config = model_config(source.config)
    ids = JanusVocabulary(config.text_vocab_size, config.codebook_size)
    return [
        (_generation_logits if _draws(case) else _text_logits)(model, case, ids) for case in inputs
    ]


def _text_logits(model: Any, case: VerifyCase, ids: JanusVocabulary) -> torch.Tensor:
    slots = case.tokens == ids.image_slot
    output = model(
        input_ids=case.tokens.masked_fill(slots, model.config.image_token_id),
        pixel_values=None if case.images is None else _pixels(case.images, torch.float32),
        attention_mask=_attention_mask(case),
    )
    logits: torch.Tensor = output.logits
    return logits


def _generation_logits(model: Any, case: VerifyCase, ids: JanusVocabulary) -> torch.Tensor:
    drawn = case.tokens[0] >= ids.first_code
    text = model.get_input_embeddings()(case.tokens[:, ~drawn])
    codes = model.prepare_embeddings_for_image_generation(case.tokens[:, drawn] - ids.first_code)
    output = model.model.language_model(
        inputs_embeds=torch.cat([text, codes], dim=1), attention_mask=_attention_mask(case)
    )
    logits: torch.Tensor = model.model.generation_head(output.last_hidden_state)
    return logits


def _attention_mask(case: VerifyCase) -> torch.Tensor:
    return (case.segment_ids >= 0).long()


def _from_original(transformers: Any, source: HFSource) -> Any:
    target = HFTarget(
        model_config(source.config), "transformers", "float32", None, {}, source.folder
    )
    # The image tokeniser takes no part; it is made as small as it can be.
    config = document(target)
    config["vq_config"] |= {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}
    model = transformers.JanusForConditionalGeneration(transformers.JanusConfig(**config))
    parameters = dict(model.named_parameters())
    for old_name in source.names:
        for name, tensor in _renamed(old_name, source):
            parameters[name].copy_(tensor.view_as(parameters[name]))
    return model


def _renamed(old_name: str, source: HFSource) -> Iterator[tuple[str, torch.Tensor]]:
    if old_name.startswith(_NOT_COMPARED):
        return
    name = old_name
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    if ".attn.qkv." not in name:
        yield name, source.read(old_name)
        return
    for letter, part in zip("qkv", source.read(old_name).chunk(3), strict=True):
        yield name.replace(".attn.qkv.", f".self_attn.{letter}_proj."), part
