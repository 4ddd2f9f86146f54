"""Transformers' own Emu3, to compare with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_aia.data.optional import import_optional


@torch.no_grad()
def reference_logits(
    folder: Path,
    config: dict[str, Any],
    read: Callable[[str], torch.Tensor],
    ids: torch.Tensor,
) -> torch.Tensor:
    """Return the fp32 logits ``[b, s, vocabulary]`` of ids ``[b, s]``.

    Transformers has no class for the original layout, but its text model has the same names.

    Args:
        folder: the checkpoint.
        config: its config.json.
        read: gives a tensor of it by name.
        ids: input.
    """
    transformers = import_optional("transformers", "hf")
    local = {"local_files_only": True, "trust_remote_code": False}
    if "text_config" in config:
        model = transformers.Emu3ForConditionalGeneration.from_pretrained(folder, **local)
    elif config.get("model_type") == "emu3_text_model":
        model = transformers.Emu3ForCausalLM.from_pretrained(folder, **local)
    else:
        model = _from_original(transformers, config, read)
    return model.float().eval()(input_ids=ids).logits


def _from_original(
    transformers: Any, config: dict[str, Any], read: Callable[[str], torch.Tensor]
) -> Any:
    of_classes = ("model_type", "auto_map", "architectures", "torch_dtype", "transformers_version")
    values = {name: value for name, value in config.items() if name not in of_classes}
    model = transformers.Emu3ForCausalLM(transformers.Emu3TextConfig(**values))
    for name, parameter in model.named_parameters():
        parameter.data.copy_(read(name))
    return model
