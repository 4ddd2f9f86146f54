"""FP8 as far as a machine without it can tell: settings, refusals, the sample beside a kernel."""

from types import SimpleNamespace
from typing import Any, cast

import attention_cases as cases
import pytest
import torch
from attention_cases import Case, make_case
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import build_module
from support.core_attention import LAYER, aia_context, config, gradients, sbhd
from torch.utils.checkpoint import checkpoint

from megatron_aia.attention.core_attention import AIACoreAttention
from megatron_aia.attention.methods import Machine, Method, choose_method
from megatron_aia.attention.sampled_attention import SampledCoreAttention
from megatron_aia.config import fit_layout, validate
from megatron_aia.config.files import with_values
from megatron_aia.models import preset_table
from megatron_aia.models.fp8 import fp8_options
from megatron_aia.models.layers import _choose_core_attention

HOPPER, BLACKWELL = (9, 0), (10, 0)
ON = {"fp8_format": "hybrid", "bf16": True, "kv_channels": 128, "seq_length": 2048}
ON |= {"max_position_embeddings": 4096}
ATTENTION = {**ON, "fp8_dot_product_attention": True, "packing": False}


def run_config(**values: Any) -> Any:
    return with_values(preset_table()["emu3_demo"].build(), values)


def check(world_size: int = 1, has_gpu: bool = True, **values: Any) -> list[str]:
    return validate(fit_layout(run_config(**values), world_size), world_size, has_gpu)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**ON, "bf16": False}, "--fp8-format hybrid keeps .* add --bf16"),
        ({**ON, "transformer_impl": "local"}, "--transformer-impl is local; use auto"),
        ({**ON, "seq_length": 2040}, "a multiple of 16 tokens .* --seq-length is 2040; use 2048"),
        ({**ON, "kv_channels": 6}, "the heads of a rank gives 24; change the model"),
        ({**ON, "ffn_hidden_size": 264}, "--ffn-hidden-size / 1 gives 264"),
        ({"fp8_dot_product_attention": True}, "works only with FP8; add --fp8-format"),
        ({**ATTENTION, "packing": True}, "add --no-packing"),
        ({**ATTENTION, "kv_channels": 64}, "a head size of 128, not 64; leave it out"),
        ({**ATTENTION, "fp8_recipe": "tensorwise"}, "--fp8-recipe is tensorwise; use delayed"),
        ({**ATTENTION, "aia_attention": "flash"}, "use --aia-attention sampled"),
        ({**ON, "fp8_amax_history_len": 0}, "--fp8-amax-history-len 0 is out of range"),
    ],
)
def test_what_cannot_run_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(**values)


def test_fp8_without_a_gpu_is_one_line() -> None:
    with pytest.raises(ValueError, match="--fp8-format hybrid needs a GPU and there is none"):
        check(has_gpu=False, **ON)


def test_rows_shared_by_ranks_are_cut_to_multiples() -> None:
    parallel = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    with pytest.raises(ValueError, match=r"a multiple of 32 tokens .* is 2032; use 2048"):
        check(2, **{**ON, "seq_length": 2032, **parallel})
    with pytest.raises(ValueError, match="--fp8-dot-product-attention cannot share sequences"):
        check(2, **ATTENTION, context_parallel_size=2)


def test_what_may_be_combined() -> None:
    assert check(**ON) == []
    assert check(**ON, fp8_recipe="mxfp8", aia_attention="flash") == []
    assert check(**ATTENTION, aia_attention="sampled")[0].startswith(
        "--fp8-dot-product-attention rarel"
    )


def test_settings_without_effect_are_noted() -> None:
    assert check(fp8_recipe="mxfp8") == ["--fp8-recipe has no effect without --fp8-format"]
    notes = check(**ON, fp8_recipe="mxfp8", fp8_amax_history_len=16)
    assert notes == ["--fp8-amax-history-len has no effect with --fp8-recipe mxfp8"]


def test_megatron_core_is_told_what_the_flags_say() -> None:
    assert fp8_options(run_config(), HOPPER) == {}
    values = {**ATTENTION, "fp8_amax_history_len": 16, "fp8_amax_compute_algo": "most_recent"}
    options = fp8_options(run_config(**values), HOPPER)
    assert options.pop("fp8") == "hybrid"
    assert options == {name: getattr(run_config(**values).training, name) for name in options}
    assert options.keys() == {
        *("fp8_recipe", "fp8_amax_history_len", "fp8_amax_compute_algo"),
        "fp8_dot_product_attention",
    }


def test_the_gpu_must_have_the_recipe() -> None:
    mxfp8 = run_config(**ON, fp8_recipe="mxfp8")
    assert fp8_options(mxfp8, BLACKWELL)["fp8_recipe"] == "mxfp8"
    with pytest.raises(ValueError, match=r"mxfp8 needs a GPU of compute capability 10.0, not 9.0"):
        fp8_options(mxfp8, HOPPER)
    with pytest.raises(ValueError, match=r"delayed needs a GPU of compute capability 8.9, not 8.0"):
        fp8_options(run_config(**ON), (8, 0))
    with pytest.raises(ValueError, match=r"attention needs a GPU of compute capability 9.0"):
        fp8_options(run_config(**ATTENTION), (8, 9))


def test_only_the_probe_measures_beside_fp8_attention() -> None:
    machine = Machine("cuda", torch.bfloat16, 128, HOPPER, attends_in_fp8=True)
    chosen = choose_method("auto", machine, sampled_queries=7)
    assert (chosen.name, chosen.sampled_queries) == ("sampled", 7)
    assert "beside Transformer Engine's FP8 attention" in str(chosen)
    with pytest.raises(ValueError, match="--aia-attention eager cannot measure beside"):
        choose_method("eager", machine)


class CausalAttention(torch.nn.Module):
    """PyTorch's attention with megatron-core's interface: causal over whole sequences."""

    def __init__(self, config: Any, attn_mask_type: AttnMaskType, **_: Any) -> None:
        super().__init__()
        assert attn_mask_type is AttnMaskType.causal

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> Any:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(q, k, v, is_causal=True, enable_gqa=True).permute(2, 0, 1, 3).flatten(2)


@pytest.fixture
def unpacked() -> Case:
    case = make_case([[cases.GENERATION], [cases.INTERLEAVED]])
    # Nothing outside the samples has a gradient: no loss sees padding.
    for segment in case.segments:
        case.grad_output[segment.batch_index, :, segment.stop :] = 0
    return case


def sampled_attention(rows: int) -> SampledCoreAttention:
    method = Method("sampled", "under test", sampled_queries=rows)
    return SampledCoreAttention(config(), LAYER + 1, inner=CausalAttention, method=method)


def chosen_attention(values: dict[str, Any]) -> Any:
    """Return the core attention of a layer whose own is ``CausalAttention``."""
    run = fit_layout(run_config(**values), 1)
    in_fp8 = run.training.fp8_dot_product_attention
    core = SimpleNamespace(
        params_dtype=torch.bfloat16,
        tensor_model_parallel_size=1,
        fp8_dot_product_attention=in_fp8,
    )
    attention = SimpleNamespace(submodules=SimpleNamespace(core_attention=CausalAttention))
    _choose_core_attention(cast(Any, attention), run, cast(Any, core), branch=0)
    return attention.submodules.core_attention


def test_fp8_attention_is_wrapped_and_fp8_products_alone_are_not() -> None:
    spec = chosen_attention(ATTENTION)
    module = build_module(spec, config=config(), layer_number=3, attn_mask_type=None)
    assert isinstance(module, SampledCoreAttention) and isinstance(module.inner, CausalAttention)
    assert (module.sampled.layer, module.sampled.queries_per_head) == (2, 64)
    assert chosen_attention(ON).module is AIACoreAttention
    # AIA off is the kernel alone.
    assert chosen_attention({**ATTENTION, "aia": False}) is CausalAttention


def test_all_rows_beside_another_attention_are_exact(unpacked: Case) -> None:
    results = []
    exact = AIACoreAttention(config(), LAYER + 1, method=Method("eager", "under test"))
    for module in (exact, sampled_attention(rows=1000)):
        aia, inputs = aia_context(unpacked), sbhd(unpacked)
        output = module(*inputs, attention_mask=None, attention_bias=aia)
        found = gradients(unpacked, inputs, output)
        results.append([aia.intensity(LAYER), *found])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert results[0][0].abs().min() > 0


def test_recompute_measures_once_and_loses_no_gradient(unpacked: Case) -> None:
    results = []
    for again in (False, True):
        aia, inputs = aia_context(unpacked), sbhd(unpacked)

        def run(*tensors: torch.Tensor, aia: Any = aia) -> torch.Tensor:
            output: torch.Tensor = sampled_attention(8)(
                *tensors, attention_mask=None, attention_bias=aia
            )
            return output

        output = checkpoint(run, *inputs, use_reentrant=True) if again else run(*inputs)
        results.append([aia.intensity(LAYER), *gradients(unpacked, inputs, output)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_packed_sequences_are_a_programmers_error() -> None:
    packed = make_case([[cases.GENERATION, cases.TEXT]])
    with pytest.raises(AssertionError, match="a sequence holds one sample"):
        sampled_attention(8)(*sbhd(packed), attention_mask=None, attention_bias=aia_context(packed))


@pytest.mark.parametrize(
    ("engine", "recipe", "allowed", "refused"),
    [
        ("2.11.0", "delayed", "0", False),
        ("2.20.2", "delayed", "0", True),
        ("2.20.2", "delayed", "1", False),
        ("2.20.2", "tensorwise", "0", False),
    ],
)
def test_a_run_that_could_not_resume_is_refused_at_its_start(
    engine: str, recipe: str, allowed: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE", allowed)
    config = run_config(**ON, fp8_recipe=recipe)
    if not refused:
        assert fp8_options(config, HOPPER, engine)["fp8"] == "hybrid"
        return
    with pytest.raises(ValueError, match=f"{engine} refuses to load, so this run could not resume"):
        fp8_options(config, HOPPER, engine)
