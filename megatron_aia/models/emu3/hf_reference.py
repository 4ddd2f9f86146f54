"""Transformers' own Emu3, to compare with."""

from collections.abc import Sequence
from typing import Any

import torch

from megatron_aia.config import ModelConfig
from megatron_aia.models.backbone import PackedGPTModel, packed_causal_mask
from megatron_aia.models.emu3.vocabulary import Emu3Vocabulary
from megatron_aia.models.hugging_face import HFSource, VerifyCase
from megatron_aia.runtime.optional import import_optional

_TEXT, _CODES, _PADDING = 48, 80, 17


def verify_cases(model: ModelConfig) -> list[VerifyCase]:
    """Return random text, text before an image and an image before text; one is padded."""
    ids = Emu3Vocabulary(model.text_vocab_size, model.codebook_size)
    generator = torch.Generator().manual_seed(0)

    def draw(first: int, last: int, length: int) -> torch.Tensor:
        return torch.randint(first, last, (2, length), generator=generator)

    text = draw(0, ids.first_visual, _TEXT)
    codes = draw(ids.first_visual, ids.size, _CODES)
    segments = torch.zeros(2, _TEXT + _CODES, dtype=torch.int64)
    segments[1, :_PADDING] = -1
    answers = draw(0, ids.first_visual, _TEXT + _CODES)
    return [
        VerifyCase("text", answers, segments),
        VerifyCase("generation", torch.cat([text, codes], dim=1), segments),
        VerifyCase("understanding", torch.cat([codes, text], dim=1), segments),
    ]


@torch.no_grad()
def own_logits(model: PackedGPTModel, case: VerifyCase) -> torch.Tensor:
    """Return this project's logits ``[b, s, padded vocabulary]``."""
    logits: torch.Tensor = model(
        case.tokens, case.position_ids, packed_causal_mask(case.segment_ids)
    )
    return logits


def reference_model(source: HFSource) -> Any:
    """Return Transformers' model.

    Transformers has no class for the original layout, but its text model has the same names.
    """
    transformers = import_optional("transformers", "hf")
    local = {"local_files_only": True, "trust_remote_code": False}
    if "text_config" in source.config:
        return transformers.Emu3ForConditionalGeneration.from_pretrained(source.folder, **local)
    if source.config.get("model_type") == "emu3_text_model":
        return transformers.Emu3ForCausalLM.from_pretrained(source.folder, **local)
    return _from_original(transformers, source)


def reference_inputs(
    model: Any, config: ModelConfig, tokens: torch.Tensor, images: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Return the inputs of that model; it has the same ids."""
    return {"input_ids": tokens}


@torch.no_grad()
def reference_logits(source: HFSource, inputs: Sequence[VerifyCase]) -> list[torch.Tensor]:
    """Return Transformers' fp32 logits ``[b, s, vocabulary]`` of each case."""
    model = reference_model(source).float().eval()
    return [
        model(input_ids=case.tokens, attention_mask=(case.segment_ids >= 0).long()).logits
        for case in inputs
    ]


def _from_original(transformers: Any, source: HFSource) -> Any:
    of_classes = ("model_type", "auto_map", "architectures", "torch_dtype", "transformers_version")
    values = {name: value for name, value in source.config.items() if name not in of_classes}
    model = transformers.Emu3ForCausalLM(transformers.Emu3TextConfig(**values))
    for name, parameter in model.named_parameters():
        parameter.data.copy_(source.read(name))
    return model
