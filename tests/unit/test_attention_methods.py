"""Which attention method a run takes, and how an impossible one is refused."""

import pytest
import torch

from megatron_aia.attention.methods import METHODS, Machine, Method, choose_method
from megatron_aia.attention.sampled import SampledIntensity
from megatron_aia.config.tree import AIAConfig
from megatron_aia.training.banner import _attention

FP32, BF16 = torch.float32, torch.bfloat16


def machine(
    device: str,
    dtype: torch.dtype,
    head_size: int = 128,
    capability: tuple[int, int] = (9, 0),
    has_triton: bool = False,
) -> Machine:
    return Machine(device, dtype, head_size, capability, has_triton)


@pytest.mark.parametrize(
    ("given", "method", "reason"),
    [
        (machine("cpu", FP32), "flash", "exact beside the flash kernel of cpu"),
        (machine("cpu", torch.float64), "flash", "exact beside"),
        (machine("cpu", BF16, head_size=12), "flash", "exact beside"),
        (machine("cuda", BF16), "flash", "exact beside the flash kernel of cuda"),
        (machine("cuda", FP32), "eager", "flash needs bfloat16 on cuda, not float32"),
        (machine("cuda", torch.float64), "eager", "needs bfloat16"),
        (machine("cuda", BF16, head_size=12), "eager", "multiple of 8 and at most 256, not 12"),
        (machine("cuda", BF16, head_size=264), "eager", "at most 256, not 264"),
        (machine("cuda", BF16, capability=(7, 5)), "eager", "capability 8.0, not 7.5"),
        (machine("cuda", BF16, has_triton=True), "flash", "exact beside"),
        (machine("cuda", FP32, has_triton=True), "eager", "maps, because flash needs bf"),
        (machine("cuda", torch.float64, has_triton=True), "eager", "needs bfloat16"),
        (machine("cuda", BF16, head_size=12, has_triton=True), "eager", "not 12"),
        (machine("cuda", FP32, capability=(7, 5), has_triton=True), "eager", "needs bfloat16"),
        (machine("cpu", FP32, has_triton=True), "flash", "exact beside"),
    ],
)
def test_auto_says_what_it_takes_and_why(given: Machine, method: str, reason: str) -> None:
    chosen = choose_method("auto", given)
    assert chosen.name == method
    assert reason in str(chosen)
    assert str(chosen).startswith(f"{method}: exact")
    assert "\n" not in str(chosen)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_is_asked_for(name: str) -> None:
    given = machine("cpu", FP32, has_triton=True)
    chosen = choose_method(name, given, sampled_queries=7, seed=5)
    assert chosen.name == name
    assert "asked for by --aia-attention" in str(chosen)
    assert (", 7 queries a head:" in str(chosen)) == (name == "sampled")


def test_every_method_has_a_flag_and_every_flag_a_method() -> None:
    assert set(AIAConfig.__annotations__["aia_attention"].__args__) == {"auto", *METHODS}
    assert AIAConfig().aia_sampled_queries == Method("sampled", "").sampled_queries


def test_the_sample_of_a_layer_knows_layer_heads_size_and_seed() -> None:
    attend = Method("sampled", "", sampled_queries=7, seed=5).build(layer=3, first_head=16)
    assert attend.__self__ == SampledIntensity(7, 5, 3, 16)  # type: ignore[attr-defined]


def test_the_banner_names_method_and_reason() -> None:
    model = torch.nn.Module()
    model.layer = torch.nn.Module()
    model.layer.core_attention = torch.nn.Identity()
    assert _attention(model) == "Identity"
    model.layer.core_attention.method = choose_method("auto", machine("cpu", FP32))
    assert _attention(model) == "Identity (flash: exact beside the flash kernel of cpu)"


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "flash",
            machine("cuda", FP32),
            "--aia-attention flash needs bfloat16 on cuda, not float32; .*--bf16",
        ),
        ("sampled", machine("cuda", FP32), "--aia-attention sampled needs bfloat16 on cuda"),
        ("flash", machine("cuda", BF16, 12), "not 12; pass --aia-attention eager, or .*--kv-chan"),
        ("flash", machine("cuda", BF16, 64, (7, 0)), "8.0, not 7.0; pass --aia-attention eager"),
        ("fused", machine("cuda", BF16), "fused needs the package triton .*; pip install triton"),
        ("fused", machine("cuda", BF16, 256, has_triton=True), "at most 128, not bfloat16 and 256"),
        (
            "fused",
            machine("cpu", torch.float64, has_triton=True),
            "float32 or bfloat16 .* not float64 and 128",
        ),
        (
            "fused",
            machine("cpu", BF16, has_triton=True),
            "fused needs a GPU for bfloat16, .*; pass",
        ),
        ("fused", machine("cuda", BF16, 64, (7, 0), True), "8.0, not 7.0; pass"),
        ("dense", machine("cpu", FP32), "dense does not exist; pass auto, eager, .* or sampled"),
        ("auto", machine("cpu", torch.float16), "float16, .*; pass --bf16"),
        ("eager", machine("cuda", torch.float16), "float16, .*; pass --bf16"),
    ],
)
def test_an_impossible_method_is_one_line(name: str, given: Machine, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        choose_method(name, given)
    assert "\n" not in str(error.value)
