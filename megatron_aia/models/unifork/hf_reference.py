"""Transformers' Qwen2 along each branch, to compare with. The head for codes is not compared."""

from collections.abc import Sequence
from typing import Any

import torch

from megatron_aia.models.backbone import PackedGPTModel, packed_causal_mask
from megatron_aia.models.hugging_face import HFSource, VerifyCase
from megatron_aia.models.lanes import Way
from megatron_aia.models.unifork.fork import BRANCHES
from megatron_aia.models.unifork.hf_config import model_config
from megatron_aia.models.unifork.settings import UniForkModelConfig
from megatron_aia.runtime.optional import import_optional

_LENGTH, _PADDING = 96, 17


def verify_cases(model: UniForkModelConfig) -> list[VerifyCase]:
    """Return random text for each branch; one row is padded."""
    generator = torch.Generator().manual_seed(0)
    segments = torch.zeros(2, _LENGTH, dtype=torch.int64)
    segments[1, :_PADDING] = -1
    return [
        VerifyCase(
            branch,
            torch.randint(0, model.text_vocab_size, (2, _LENGTH), generator=generator),
            segments,
        )
        for branch in BRANCHES
    ]


@torch.no_grad()
def own_logits(model: PackedGPTModel, case: VerifyCase) -> torch.Tensor:
    """Return the text head's logits of understanding, the hidden states of generation."""
    lane = BRANCHES.index(case.name)
    hidden: torch.Tensor = model(
        case.tokens,
        case.position_ids,
        packed_causal_mask(case.segment_ids),
        extra_block_kwargs={"attention_bias": Way(lane)},
    )
    return hidden if lane else model.text_logits(hidden)


@torch.no_grad()
def reference_logits(source: HFSource, cases: Sequence[VerifyCase]) -> list[torch.Tensor]:
    """Return the same of Transformers' model, fp32."""
    found = []
    for case in cases:
        model = _qwen2(source, case.name)
        mask = (case.segment_ids >= 0).long()
        # Positions from the first token on, padding or not, as ours.
        output = model(
            input_ids=case.tokens,
            attention_mask=mask,
            position_ids=case.position_ids,
            output_hidden_states=True,
        )
        is_drawn = bool(BRANCHES.index(case.name))
        found.append(output.hidden_states[-1] if is_drawn else output.logits)
    return found


def reference_model(source: HFSource) -> Any:
    """Refuse: no model of Transformers is UniFork.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"{source.folder}: Transformers has no UniFork; convert it by "
        "tools/convert_hf_to_megatron.py and pass the result as --load"
    )


def reference_inputs(
    model: Any, config: Any, tokens: torch.Tensor, images: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Refuse, as ``reference_model`` has done before.

    Raises:
        ValueError: always.
    """
    raise ValueError("Transformers has no UniFork")


def _qwen2(source: HFSource, branch: str) -> Any:
    """Return Transformers' Qwen2 with the layers and the norm of a branch."""
    transformers = import_optional("transformers", "hf")
    config = model_config(source.config)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=config.text_vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_query_groups,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.norm_epsilon,
            rope_theta=float(config.rotary_base),
            rope_parameters={"rope_type": "default", "rope_theta": float(config.rotary_base)},
            tie_word_embeddings=not config.untie_embeddings_and_output_weights,
        )
    )
    for name, parameter in model.named_parameters():
        parameter.data.copy_(source.read(_source_name(name, branch, config)))
    return model.float().eval()


def _source_name(name: str, branch: str, config: UniForkModelConfig) -> str:
    if branch == BRANCHES[0]:
        return name
    if name == "model.norm.weight":
        return "model.norm_gen.weight"
    head, _, rest = name.removeprefix("model.layers.").partition(".")
    if head.isdigit() and int(head) >= config.num_shared_layers:
        return f"model.gen_fork_layers.{int(head) - config.num_shared_layers}.{rest}"
    return name
