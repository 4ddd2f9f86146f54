"""Transformers' Janus with the weights of one of this project's models."""

from pathlib import Path
from typing import Any

from megatron_aia.config import ModelConfig
from megatron_aia.models.hugging_face import HFTarget
from megatron_aia.models.janus_pro.convert import weight_map
from megatron_aia.models.janus_pro.hf_document import document
from megatron_aia.models.janus_pro.hf_names import export_names
from megatron_aia.models.janus_pro.network import JanusModel


def hugging_face_twin(ours: JanusModel, model: ModelConfig) -> Any:
    """Return Transformers' model in float64, attending with whole maps.

    Args:
        ours: the whole model in one process.
        model: its architecture.
    """
    import transformers

    config = document(HFTarget(model, "transformers", "float32", None, {}, Path()))
    config["vq_config"] |= {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}
    theirs = transformers.JanusForConditionalGeneration(transformers.JanusConfig(**config))
    state = theirs.state_dict()
    parameters = dict(ours.named_parameters())
    for name, entry in weight_map(model, export_names("transformers", False)).items():
        parts = entry.split(parameters[name].detach())
        for source, tensor in zip(entry.sources, parts, strict=True):
            state[source] = tensor
    theirs.load_state_dict(state)
    theirs.set_attn_implementation("eager")
    return theirs.double().eval()
