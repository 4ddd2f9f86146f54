"""Emu3 between Hugging Face and megatron-core: names, weights, files.

==============  =====================  ============================  ==============
layout          decoder                head                          image tokeniser
==============  =====================  ============================  ==============
original        ``model.``             ``lm_head.``                  another repository
transformers    ``text_model.model.``  ``text_model.lm_head.``       ``vqmodel.``
the same, in    ``model.text_model.``  ``lm_head.``                  ``model.vqmodel.``
memory
its text model  ``model.``             ``lm_head.``                  none
==============  =====================  ============================  ==============

Every version of Transformers reads the second row; those before 4.52 read no other.
"""

from collections.abc import Set
from dataclasses import dataclass

from megatron_aia.config import ModelConfig
from megatron_aia.models.emu3.hf_config import document, model_config
from megatron_aia.models.emu3.hf_reference import (
    own_logits,
    reference_inputs,
    reference_logits,
    reference_model,
    verify_cases,
)
from megatron_aia.models.emu3.vocabulary import Emu3Vocabulary
from megatron_aia.models.hugging_face import HFFormat, HFLayout
from megatron_aia.models.llama_map import llama_map
from megatron_aia.models.param_map import ParamMap

_KEPT = "vqmodel."


@dataclass(frozen=True)
class Emu3Names:
    """One row of the table above; see ``HFNames``."""

    decoder: str
    """Prefix of the decoder's tensors."""
    head: str
    """Name of the output matrix."""
    tokeniser: str = ""
    """Prefix of the image tokeniser's tensors; "" if it has no place."""

    def passthrough_name(self, name: str) -> str | None:
        """Return the name to keep a tensor of the image tokeniser under."""
        is_kept = bool(self.tokeniser) and name.startswith(self.tokeniser)
        return _KEPT + name.removeprefix(self.tokeniser) if is_kept else None

    def export_name(self, kept: str) -> str | None:
        """Return the name of a kept tensor here."""
        return self.tokeniser + kept.removeprefix(_KEPT) if self.tokeniser else None


_PLAIN = Emu3Names("model.", "lm_head.weight")
_ON_DISK = Emu3Names("text_model.model.", "text_model.lm_head.weight", "vqmodel.")
_IN_MEMORY = Emu3Names("model.text_model.", "lm_head.weight", "model.vqmodel.")


def find_names(names: Set[str]) -> Emu3Names:
    """Return the naming of a checkpoint.

    Raises:
        ValueError: it is none of Emu3's.
    """
    for candidate in (_ON_DISK, _IN_MEMORY, _PLAIN):
        if f"{candidate.decoder}embed_tokens.weight" in names:
            return candidate
    raise ValueError("the tensors have no names of an Emu3 checkpoint")


def export_names(layout: HFLayout, has_kept: bool) -> Emu3Names:
    """Return the naming to write; Transformers' whole model needs its image tokeniser."""
    return _ON_DISK if layout == "transformers" and has_kept else _PLAIN


def weight_map(model: ModelConfig, names: Emu3Names) -> dict[str, ParamMap]:
    """Return every parameter of the unsplit model and the tensors that make it."""
    return llama_map(model, names.decoder, names.head, vocab_size(model))


def vocab_size(model: ModelConfig) -> int:
    """Return the number of ids."""
    return Emu3Vocabulary(model.text_vocab_size, model.codebook_size).size


FORMAT = HFFormat(
    model_types={"Emu3": "original", "emu3": "transformers", "emu3_text_model": "transformers"},
    find_names=find_names,
    export_names=export_names,
    model_config=model_config,
    weight_map=weight_map,
    document=document,
    verify_cases=verify_cases,
    reference_logits=reference_logits,
    reference_model=reference_model,
    reference_inputs=reference_inputs,
    own_logits=own_logits,
    files=(
        *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
        *("chat_template*", "preprocessor_config.json", "processor_config.json"),
        *("generation_config.json", "emu3.tiktoken", "emu3_vision_tokens.txt", "*_emu3*.py"),
    ),
)
