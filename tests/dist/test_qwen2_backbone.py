"""Options of the decoder against Transformers' Qwen2: QKV bias, and one matrix in and out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import Layout, gather_full, tiny_batches, tiny_config
from support.spawn import spawn
from support.tiny_data import write_shards

from megatron_aia.aia.roles import Task
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.models import load_model_spec
from megatron_aia.models.emu3.model import vocabulary
from megatron_aia.models.initialize import global_parameters
from megatron_aia.models.llama_map import llama_map
from megatron_aia.runtime.parallel import (
    create_parallel,
    destroy_parallel,
    initialize_process_group,
)
from megatron_aia.training.setup import build_models
from megatron_aia.training.step import run_step

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
TP = {"tensor_model_parallel_size": 2}
PP = {"pipeline_model_parallel_size": 2}
SP = {"sequence_parallel": True}
VPP = {"num_layers_per_virtual_pipeline_stage": 1}
LAYOUTS = {
    1: {"one process": {}},
    2: {"TP 2 + SP": TP | SP, "PP 2": PP, "CP 2": {"context_parallel_size": 2}},
    4: {"TP 2 x PP 2 x VPP 2 + SP": TP | PP | VPP | SP},
}
OPTIONS = {
    "bias": {"add_qkv_bias": True},
    "tied": {"untie_embeddings_and_output_weights": False},
    "bias and tied": {"add_qkv_bias": True, "untie_embeddings_and_output_weights": False},
}


def configure(data: Path, parallel: dict[str, Any], options: dict[str, Any]) -> Config:
    """Return a run without AIA, which Transformers has not."""
    config = tiny_config(data, Layout(parallel, aia=False))
    return replace(config, model=replace(config.model, **options))


def measure_all(data: Path, layouts: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    return {name: measure(configure(data, layout, options)) for name, layout in layouts.items()}


def measure(config: Config) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the weights in full shape and their gradients after one step; biases are not 0."""
    initialize_process_group(1)
    parallel = create_parallel(config.parallel, config.model.num_layers, seed=0)
    spec = load_model_spec("emu3")
    models = build_models(config, spec, parallel)
    with torch.no_grad():
        for model in models:
            for name, parameter in global_parameters(model.module):
                if name.endswith("bias"):
                    ramp = torch.linspace(-1, 1, parameter.numel() * parallel.tensor_size)
                    parameter.copy_(ramp.chunk(parallel.tensor_size)[parallel.tensor_rank])
    weights = gather_full(models, parallel, "data")
    rows = tiny_batches(config, parallel).step(0)
    run_step(models, spec, spec.losses(config), config, parallel, rows, None)
    gradients = gather_full(models, parallel, "main_grad")
    destroy_parallel()
    return weights, gradients


def reference_gradients(
    config: Config, batches: list[MicroBatch], weights: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return Qwen2's gradients by our names: of the mean over tasks by their share of samples."""
    m = config.model
    qwen = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=vocabulary(config).size,
            hidden_size=m.hidden_size,
            intermediate_size=m.ffn_hidden_size,
            num_hidden_layers=m.num_layers,
            num_attention_heads=m.num_attention_heads,
            num_key_value_heads=m.num_query_groups,
            max_position_embeddings=m.max_position_embeddings,
            rms_norm_eps=m.norm_epsilon,
            rope_theta=float(m.rotary_base),
            tie_word_embeddings=not m.untie_embeddings_and_output_weights,
        )
    )
    full = replace(m, add_qkv_bias=True)  # Qwen2 always has the bias
    table = llama_map(full, "model.", "lm_head.weight", vocabulary(config).size)
    state = {}
    for name, entry in table.items():
        parameter = weights.get(name, torch.zeros(entry.target_shape))
        padding = entry.target_shape[0] - parameter.shape[0]
        parameter = torch.cat([parameter, parameter.new_zeros(padding, *parameter.shape[1:])])
        state |= dict(zip(entry.sources, entry.split(parameter), strict=True))
    missing, unexpected = qwen.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    losses: dict[Task, list[torch.Tensor]] = {task: [] for task in Task}
    samples = 0
    for batch in batches:
        labels = batch.next_token_labels(fill=-100)
        for segment, task in zip(batch.segments, batch.tasks, strict=True):
            span = segment.batch_index, slice(segment.start, segment.stop)
            logits = qwen(input_ids=batch.tokens[span][None]).logits[0]
            losses[Task(task)].append(
                torch.nn.functional.cross_entropy(logits, labels[span], reduction="none")[
                    labels[span] >= 0
                ]
            )
            samples += 1
    total = sum(torch.cat(found).mean() * len(found) for found in losses.values() if found)
    (total / samples).backward()
    by_name = {name: parameter.grad for name, parameter in qwen.named_parameters()}
    return {
        name: entry.join([by_name[source] for source in entry.sources])
        for name, entry in table.items()
        if name in weights
    }


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_equal_qwen2(options: str, tmp_path: Path) -> None:
    data = write_shards(tmp_path / "data")
    found: dict[str, Any] = {}
    for world_size, layouts in LAYOUTS.items():
        found |= spawn(measure_all, world_size, data, layouts, OPTIONS[options])
    config = configure(data, {}, OPTIONS[options])
    batches = spawn(read_batches, 1, config)
    expected = reference_gradients(config, batches, found["one process"][0])
    for layout, (weights, gradients) in found.items():
        # The last pipeline stage has a copy of a shared matrix, and its gradient too.
        copies = {"output_layer.weight"} if "tied" in options and "PP" in layout else set()
        assert gradients.keys() - copies == expected.keys()
        for name in gradients:
            source = "embedding.word_embeddings.weight" if name in copies else name
            assert torch.equal(weights[name], found["one process"][0][source]), (layout, name)
            wanted = expected[source][: len(gradients[name])]
            error = (gradients[name] - wanted).double().norm() / wanted.double().norm()
            assert error < TOLERANCE, (layout, name, float(error))


def read_batches(config: Config) -> list[MicroBatch]:
    initialize_process_group(1)
    parallel = create_parallel(config.parallel, config.model.num_layers, seed=0)
    return list(tiny_batches(config, parallel).step(0))
