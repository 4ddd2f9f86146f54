"""Intensities of Transformers models against their own eager attention maps."""

from typing import Any

import pytest
import torch
import transformers
from support.foreign_models import MODELS, TEXT, TOKENS, ForeignModel
from transformers import AttentionMaskInterface

from megatron_aia.measurement import recorder as recorder_file
from megatron_aia.measurement.recorder import IMPLEMENTATION, IntensityRecorder, IntensityTerm


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20)


def with_padding(case: ForeignModel, padding: str) -> dict[str, Any]:
    """Hide 4 tokens of the second row on one side; neither holds an image."""
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    if padding == "left":
        mask[1, :4] = 0
    elif padding == "right":
        mask[1, -4:] = 0
    return {**case.inputs, "attention_mask": mask} if padding != "none" else dict(case.inputs)


def both_ways(case: ForeignModel) -> list[IntensityTerm]:
    """Answer to image, and image to prompt, of both rows."""
    answer = torch.arange(int(case.images[-1]) + 1, TOKENS - 4)
    prompt = torch.arange(4, int(case.images[0]))
    return [
        term
        for row in (0, 1)
        for term in (
            IntensityTerm(row, answer, case.images),
            IntensityTerm(row, case.images, prompt),
        )
    ]


def by_maps(case: ForeignModel, inputs: dict[str, Any], terms: list[IntensityTerm]) -> torch.Tensor:
    """Eq. 1 from the maps that Transformers' eager attention returns; ``[terms, layers]``."""
    case.model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = case.model(**inputs, output_attentions=True, use_cache=False).attentions
    return torch.tensor(
        [
            [
                layer[term.row][:, term.queries][:, :, term.keys].double().sum(-1).mean().item()
                for layer in maps
            ]
            for term in terms
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_eager_maps(name: str, padding: str) -> None:
    case = MODELS[name]()
    inputs, terms = with_padding(case, padding), both_ways(case)
    expected = by_maps(case, inputs, terms)
    found = IntensityRecorder(case.model).measure(inputs, terms)
    assert (found - expected).abs().max() < 1e-6
    assert expected.std() > 0.03, "near-uniform maps would prove little"


@pytest.mark.parametrize("name", ["llama", "qwen2_sliding"])
def test_without_the_mask_function_it_would_be_wrong(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = MODELS[name]()
    inputs, terms = with_padding(case, "left"), both_ways(case)
    expected = by_maps(case, inputs, terms)
    monkeypatch.setattr(
        AttentionMaskInterface,
        "_global_mapping",
        {**AttentionMaskInterface._global_mapping},
    )
    del AttentionMaskInterface._global_mapping[IMPLEMENTATION]
    found = IntensityRecorder(case.model).measure(inputs, terms)
    assert (found - expected).abs().max() > 0.01


def test_a_mask_of_four_dimensions_passes_through() -> None:
    case = MODELS["llama"]()
    allowed = torch.ones(TOKENS, TOKENS).tril().bool()
    allowed[5:21, 5:21] = True  # the image sees itself both ways
    mask = torch.zeros(2, 1, TOKENS, TOKENS).masked_fill(~allowed, -torch.inf)
    inputs, terms = {**case.inputs, "attention_mask": mask}, both_ways(case)
    inner = IntensityTerm(0, torch.tensor([5]), torch.arange(6, 21))
    expected = by_maps(case, inputs, [*terms, inner])
    found = IntensityRecorder(case.model).measure(inputs, [*terms, inner])
    assert (found - expected).abs().max() < 1e-6
    assert (found[-1] > 0).all(), "keys behind the query"


def test_shares_of_all_keys_add_up_to_one() -> None:
    """Forty terms of a row take more than one call: a head is 8 wide."""
    case = MODELS["qwen3_vl"]()
    queries = torch.tensor([3, 11, 39])
    terms = [IntensityTerm(0, queries, torch.tensor([key])) for key in range(TOKENS)]
    found = IntensityRecorder(case.model).measure(case.inputs, terms)
    assert found.sum(0) == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    case = MODELS["llava"]()
    model, terms = case.model, both_ways(case)
    model.set_attn_implementation({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
    with torch.no_grad():
        before = model(**case.inputs).logits
        model.train()
        IntensityRecorder(model).measure(case.inputs, terms)
        assert model.training
        after = model.eval()(**case.inputs).logits
    config = model.config
    names = [sub._attn_implementation for sub in (config, config.text_config, config.vision_config)]
    assert names == ["sdpa", "eager", "sdpa"]
    assert torch.equal(before, after)
    assert not len(recorder_file._ACTIVE)


def test_layers_without_attention_are_nan() -> None:
    config = transformers.Qwen3NextConfig(
        **{**TEXT, "num_hidden_layers": 4, "head_dim": 8},
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8},
        **{"linear_value_head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1},
        **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    )
    model = transformers.Qwen3NextForCausalLM(config).eval()
    ids = torch.randint(1, 140, (1, TOKENS))
    term = IntensityTerm(0, torch.arange(20, 40), torch.arange(20))
    found = IntensityRecorder(model).measure({"input_ids": ids}, [term])
    assert found[0].isnan().tolist() == [True, True, True, False]


def _measure(model: Any) -> None:
    ids = torch.randint(1, 140, (1, TOKENS))
    term = IntensityTerm(0, torch.arange(20, 40), torch.arange(20))
    IntensityRecorder(model.eval()).measure({"input_ids": ids}, [term])


def test_attention_sinks_are_refused() -> None:
    config = transformers.GptOssConfig(
        **{**TEXT, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}
    )
    with pytest.raises(ValueError, match="attention sinks"):
        _measure(transformers.GptOssForCausalLM(config))


def test_capped_scores_are_refused() -> None:
    config = transformers.Gemma2Config(**{**TEXT, "head_dim": 8})
    with pytest.raises(ValueError, match="softcap"):
        _measure(transformers.Gemma2ForCausalLM(config))


def test_attention_outside_the_interface_is_refused() -> None:
    config = transformers.FalconConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    with pytest.raises(ValueError, match=r"FalconForCausalLM.*cannot be measured"):
        _measure(transformers.FalconForCausalLM(config))
