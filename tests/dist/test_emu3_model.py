"""The decoder against Transformers' Emu3, the published size, and megatron-core's attention."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import (
    Layout,
    predict_every_token,
    run_layout,
    tiny_batches,
    tiny_config,
)
from support.spawn import spawn
from support.tiny_data import write_shards

from megatron_aia.aia.inject import AIAContext
from megatron_aia.config import Config
from megatron_aia.models import load_model_spec, preset_table
from megatron_aia.models.emu3.model import vocabulary
from megatron_aia.models.layers import uses_transformer_engine
from megatron_aia.runtime.parallel import create_parallel, initialize_process_group

pytestmark = pytest.mark.versions

PUBLISHED_PARAMETERS = 8_492_011_520


def one_process(config: Config) -> Config:
    layout = replace(
        config.parallel,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        sequence_parallel=False,
    )
    return replace(config, parallel=layout)


def count_parameters() -> tuple[int, int]:
    config = one_process(preset_table()["emu3_8b"].build())
    initialize_process_group(1)
    parallel = create_parallel(config.parallel, config.model.num_layers, seed=0)
    size = vocabulary(config).size
    with torch.device("meta"):
        model = load_model_spec("emu3").build(config, parallel, 0)
    padding = model.vocab_size - size
    total = sum(parameter.numel() for parameter in model.parameters())
    return total - 2 * padding * config.model.hidden_size, padding


def test_8b_preset_has_the_published_size() -> None:
    assert spawn(count_parameters, 1) == (PUBLISHED_PARAMETERS, 82)


def hugging_face_model(config: Config) -> Any:
    transformers = pytest.importorskip("transformers")
    m = config.model
    text = transformers.Emu3TextConfig(
        vocab_size=vocabulary(config).size,
        hidden_size=m.hidden_size,
        intermediate_size=m.ffn_hidden_size,
        num_hidden_layers=m.num_layers,
        num_attention_heads=m.num_attention_heads,
        num_key_value_heads=m.num_query_groups,
        max_position_embeddings=m.max_position_embeddings,
        rms_norm_eps=m.norm_epsilon,
        rope_theta=float(m.rotary_base),
        attention_dropout=0.0,
        pad_token_id=vocabulary(config).pad,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.Emu3ForCausalLM(text).eval()
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name else 0.0
        parameter.data.normal_(offset, 0.2)  # wide enough for a wrong detail to show
    return model


def copy_weights(source: dict[str, torch.Tensor], target: torch.nn.Module, config: Config) -> None:
    """Fill the decoder from Hugging Face names: fused QKV by query group, gate above up."""
    m = config.model
    size = vocabulary(config).size
    weights = dict(target.named_parameters())
    weights["embedding.word_embeddings.weight"].data[:size] = source["model.embed_tokens.weight"]
    weights["output_layer.weight"].data[:size] = source["lm_head.weight"]
    weights["decoder.final_layernorm.weight"].data[:] = source["model.norm.weight"]
    for i in range(m.num_layers):
        hf, ours = f"model.layers.{i}.", f"decoder.layers.{i}."
        q, k, v = (
            source[f"{hf}self_attn.{x}_proj.weight"].view(m.num_query_groups, -1, m.hidden_size)
            for x in "qkv"
        )
        copies = {
            "self_attention.linear_qkv": torch.cat([q, k, v], dim=1).flatten(0, 1),
            "self_attention.linear_proj": source[f"{hf}self_attn.o_proj.weight"],
            "mlp.linear_fc1": torch.cat(
                [source[f"{hf}mlp.gate_proj.weight"], source[f"{hf}mlp.up_proj.weight"]]
            ),
            "mlp.linear_fc2": source[f"{hf}mlp.down_proj.weight"],
            "input_layernorm": source[f"{hf}input_layernorm.weight"],
            "pre_mlp_layernorm": source[f"{hf}post_attention_layernorm.weight"],
        }
        for name, value in copies.items():
            weights[f"{ours}{name}.weight"].data[:] = value


def losses_of_both(data: Path) -> float:
    """Return the largest difference of a token's loss, sample by sample against the packed
    sequence."""
    config = tiny_config(data, Layout())
    config = replace(config, model=replace(config.model, rotary_base=12_345))
    initialize_process_group(1)
    parallel = create_parallel(config.parallel, config.model.num_layers, seed=0)
    spec = load_model_spec("emu3")
    ours: Any = spec.build(config, parallel, 0).eval()
    reference = hugging_face_model(config)
    copy_weights(reference.state_dict(), ours, config)
    worst = 0.0
    for batch in tiny_batches(config, parallel).step(0):
        with torch.no_grad():
            aia = AIAContext(batch.segments, None, config.model.num_attention_heads)
            nll = spec.forward(ours, predict_every_token(batch), aia)["nll"]
            for segment in batch.segments:
                row = batch.tokens[segment.batch_index, segment.start : segment.stop]
                logits = reference(input_ids=row[None]).logits[0, :-1]
                expected = torch.nn.functional.cross_entropy(logits, row[1:], reduction="none")
                actual = nll[segment.batch_index, segment.start : segment.stop - 1]
                worst = max(worst, float((actual - expected).abs().max() / expected.abs().max()))
    return worst


def test_token_losses_equal_transformers_emu3(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert spawn(losses_of_both, 1, write_shards(tmp_path / "data")) < 1e-5


def core_attention_classes(config: Config) -> set[str]:
    initialize_process_group(1)
    parallel = create_parallel(config.parallel, config.model.num_layers, seed=0)
    model = load_model_spec("emu3").build(config, parallel, 0)
    return {
        type(module.core_attention).__name__
        for module in model.modules()
        if hasattr(module, "core_attention")
    }


def test_without_aia_megatron_cores_own_attention_runs(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, Layout())
    off = replace(config, aia=replace(config.aia, aia=False))
    assert spawn(core_attention_classes, 1, config) == {"AIACoreAttention"}
    assert spawn(core_attention_classes, 1, off) == {"DotProductAttention"}
    shared_rows = replace(off, parallel=replace(off.parallel, context_parallel_size=2))
    assert spawn(core_attention_classes, 2, shared_rows) == {"AIACoreAttention"}


def test_next_token_loss_is_the_same_without_aia(tmp_path: Path) -> None:
    config = tiny_config(write_shards(tmp_path / "data"), Layout())
    zero = replace(config.aia, aia_lambda_generation=0.0, aia_lambda_understanding=0.0)
    measured = spawn(run_layout, 1, replace(config, aia=zero))
    plain = spawn(run_layout, 1, replace(config, aia=replace(config.aia, aia=False)))
    torch.testing.assert_close(plain.losses, measured.losses, rtol=1e-5, atol=0)
    assert plain.grad_norms == pytest.approx(measured.grad_norms, rel=1e-5)
    assert not plain.aia_loss


def test_bf16_is_the_same_to_rounding(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "data")
    exact = spawn(run_layout, 1, tiny_config(data, Layout()))
    for parallel in (
        {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        {"context_parallel_size": 2},
    ):
        rounded = spawn(run_layout, 2, tiny_config(data, Layout(parallel), bf16=True))
        torch.testing.assert_close(rounded.losses, exact.losses, rtol=2e-2, atol=0)
        assert rounded.grad_norms == pytest.approx(exact.grad_norms, rel=5e-2)


def test_transformer_engine_without_a_gpu_is_one_clear_line() -> None:
    config = Config()
    config.model.transformer_impl = "transformer_engine"
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="--transformer-impl local"):
        uses_transformer_engine(config)
