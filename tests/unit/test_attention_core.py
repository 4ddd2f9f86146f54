import sys
from types import SimpleNamespace

import attention_cases as cases
import pytest
import reference
import torch
from attention_cases import Case, make_case
from support.core_attention import (
    HEAD_SIZE,
    HEADS,
    LAYER,
    aia_context,
    config,
    gradients,
    sbhd,
)
from torch.utils.checkpoint import checkpoint

from megatron_aia.aia.inject import AIAContext
from megatron_aia.attention.core_attention import AIACoreAttention
from megatron_aia.attention.methods import Method
from megatron_aia.runtime import recompute

pytestmark = pytest.mark.versions


@pytest.fixture
def case() -> Case:
    return make_case([[cases.GENERATION, cases.TEXT], [cases.INTERLEAVED]])


ALL_ROWS = 1000
"""More than any sample here has, so `sampled` is exact."""


@pytest.fixture(params=["eager", "flash", "sampled"])
def module(request: pytest.FixtureRequest) -> AIACoreAttention:
    method = Method(request.param, "under test", sampled_queries=ALL_ROWS)
    return AIACoreAttention(config(), layer_number=LAYER + 1, method=method)


def test_output_is_the_attention_and_the_layer_is_recorded(
    case: Case, module: AIACoreAttention
) -> None:
    aia = aia_context(case)
    output = module(*sbhd(case), None, attention_bias=aia)
    expected, intensities = reference.attention(
        case.query, case.key, case.value, case.segments, case.scale
    )
    torch.testing.assert_close(output, expected.permute(2, 0, 1, 3).flatten(2))
    torch.testing.assert_close(aia.intensity(LAYER), torch.stack(intensities))
    assert aia.measured == ((0, LAYER),)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recompute_gives_the_same_numbers_once(
    case: Case, module: AIACoreAttention, reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_inputs, inputs = sbhd(case), sbhd(case)
    plain_aia, aia = aia_context(case), aia_context(case)
    plain = module(*plain_inputs, None, attention_bias=plain_aia)
    expected = gradients(case, plain_inputs, plain)

    monkeypatch.setattr(recompute, "is_checkpointing", lambda: True)
    output = checkpoint(
        lambda q, k, v: module(q, k, v, None, attention_bias=aia),
        *inputs,
        use_reentrant=reentrant,
    )
    # A reentrant checkpoint runs without gradient first; that pass must not cost a measurement.
    assert aia.measured == (() if reentrant else ((0, LAYER),))
    torch.testing.assert_close(output, plain)
    for got, want in zip(gradients(case, inputs, output), expected, strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(aia.intensity(LAYER), plain_aia.intensity(LAYER))


def test_the_first_pass_of_transformer_engines_checkpoint_measures_nothing(
    case: Case, module: AIACoreAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not set megatron-core's flag; a stand-in for its module tells."""
    engine = SimpleNamespace(is_fp8_activation_recompute_enabled=lambda: True)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch.distributed", engine)
    aia = aia_context(case)
    with torch.no_grad():
        module(*sbhd(case), None, attention_bias=aia)
    assert aia.measured == ()
    module(*sbhd(case), None, attention_bias=aia)
    assert aia.measured == ((0, LAYER),)


def test_evaluation_measures(case: Case, module: AIACoreAttention) -> None:
    aia = aia_context(case)
    with torch.no_grad():
        module(*sbhd(case), None, attention_bias=aia)
    assert aia.measured == ((0, LAYER),)


def test_layers_share_the_layout(case: Case, module: AIACoreAttention) -> None:
    aia = aia_context(case)
    module(*sbhd(case), None, attention_bias=aia)
    kept = dict(aia.cache)
    other = AIACoreAttention(config(), layer_number=1)
    other(*sbhd(case), None, attention_bias=aia)
    assert aia.cache.keys() == kept.keys()
    assert all(aia.cache[key] is value for key, value in kept.items())


def test_rows_of_padding_only(module: AIACoreAttention) -> None:
    inputs = [torch.ones(4, 1, HEADS, HEAD_SIZE, requires_grad=True) for _ in range(3)]
    output = module(*inputs, None, attention_bias=AIAContext((), None, HEADS))
    output.sum().backward()
    assert output.count_nonzero() == 0
    assert all(x.grad is not None and x.grad.count_nonzero() == 0 for x in inputs)


def test_the_softmax_scale_of_the_model_is_used(case: Case) -> None:
    scaled = AIACoreAttention(config(), layer_number=1, softmax_scale=0.01)
    output = scaled(*sbhd(case), None, attention_bias=aia_context(case))
    expected, _ = reference.attention(case.query, case.key, case.value, case.segments, 0.01)
    torch.testing.assert_close(output, expected.permute(2, 0, 1, 3).flatten(2))


def test_the_batch_must_come_with_the_call(case: Case, module: AIACoreAttention) -> None:
    with pytest.raises(ValueError, match="must be an AIAContext, not NoneType"):
        module(*sbhd(case), None)


def test_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attention_dropout is 0.1; .*--attention-dropout 0"):
        AIACoreAttention(config(attention_dropout=0.1), layer_number=1)
