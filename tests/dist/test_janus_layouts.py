"""Promise 1 for Janus-Pro: images, two heads and frozen parameters are equal in every layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import MODELS, Layout, LayoutSuite, StepResult, relative_error, run_layouts
from support.spawn import spawn
from support.tiny_data import write_shards

pytestmark = pytest.mark.versions

TOLERANCE = 1e-5

TP = {"tensor_model_parallel_size": 2}
CP = {"context_parallel_size": 2}
PP = {"pipeline_model_parallel_size": 2}
SP = {"sequence_parallel": True}
VPP = {"num_layers_per_virtual_pipeline_stage": 1}
ZERO = {"use_distributed_optimizer": True}
OVERLAP = {**ZERO, "overlap_grad_reduce": True, "overlap_param_gather": True}
SELECTIVE = {"recompute_granularity": "selective"}
FULL = {"recompute_granularity": "full"}


def janus(parallel: dict[str, Any] | None = None, **values: Any) -> Layout:
    return Layout(parallel or {}, family="janus_pro", **values)


REFERENCE = {"reference": janus(method="eager", packing=False)}
LAYOUTS = {
    1: {
        "packed": janus(),
        "unpacked": janus(packing=False),
        "micro-batch 4": janus(micro_batch_size=4),
        "full recompute": janus(FULL),
    },
    2: {
        "TP 2": janus(TP),
        "TP 2 + SP": janus({**TP, **SP}),
        "TP 2 + SP + full recompute": janus({**TP, **SP, **FULL}),
        "PP 2": janus(PP),
        "PP 2 x VPP 2": janus({**PP, **VPP}, packing=False),
        "PP 2 + selective recompute, variable lengths": janus(
            {**PP, **SELECTIVE}, micro_batch_size=2, variable_lengths=True
        ),
        "DP 2": janus(micro_batch_size=2),
        "DP 2 distributed optimizer": janus(ZERO),
        "DP 2 overlapped": janus(OVERLAP, packing=False),
        "CP 2": janus(CP),
        "CP 2 unpacked, micro-batch 4": janus(CP, packing=False, micro_batch_size=4),
        "CP 2 overlapped + selective recompute": janus({**CP, **OVERLAP, **SELECTIVE}),
    },
    4: {
        "TP 2 x PP 2 + SP, distributed optimizer": janus({**TP, **PP, **SP, **ZERO}),
        "TP 2 x PP 2 x VPP 2 + SP + recompute": janus({**TP, **PP, **VPP, **SP, **FULL}),
        "DP 2 x TP 2": janus(TP, packing=False),
        "PP 4": janus({"pipeline_model_parallel_size": 4}),
        "CP 4": janus({"context_parallel_size": 4}, micro_batch_size=2),
        "TP 2 x CP 2 + SP": janus({**TP, **CP, **SP}),
        "PP 2 x CP 2 + full recompute": janus({**PP, **CP, **FULL}),
        "DP 2 x CP 2": janus(CP, packing=False),
    },
}


SUITE = LayoutSuite(LAYOUTS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), family="janus_pro")


@pytest.fixture(scope="module")
def reference(shards: Path) -> StepResult:
    """Everything is trained, the tower too."""
    result: StepResult = spawn(run_layouts, 1, shards, REFERENCE)["reference"]
    return result


@pytest.mark.parametrize("name", SUITE.by_name)
def test_equal_to_one_process(name: str, shards: Path, reference: StepResult) -> None:
    result = SUITE.result(name, shards)
    assert relative_error(result.losses, reference.losses) < TOLERANCE
    for layer, losses in reference.aia_loss.items():
        assert relative_error(result.aia_loss[layer], losses) < TOLERANCE, f"AIA, layer {layer}"
    if not SUITE.by_name[name].parallel.get("use_distributed_optimizer"):
        # With it, a rank keeps the sum of its own shard only; norms and weights show the rest.
        for parameter, gradient in reference.gradients.items():
            error = relative_error(result.gradients[parameter], gradient)
            assert error < TOLERANCE, f"gradient of {parameter}"
    assert result.grad_norms == pytest.approx(reference.grad_norms, rel=TOLERANCE)
    for parameter, weight in reference.weights.items():
        ours, theirs = (settled(parameter, w) for w in (result.weights[parameter], weight))
        assert relative_error(ours, theirs) < TOLERANCE, parameter


def settled(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Leave out biases of keys: a softmax does not see them, their gradient is rounding alone, and
    Adam makes a full step of its sign."""
    if not name.endswith("linear_qkv.bias"):
        return weight
    heads = MODELS["janus_pro"].vision_num_attention_heads
    return weight.view(heads, 3, -1)[:, [0, 2]]


def test_reference_step_is_worth_comparing(reference: StepResult) -> None:
    """All tasks, both AIA terms, and gradients everywhere: nothing passes by being zero."""
    assert (reference.losses > 0).all()
    assert all(len(losses) >= 6 and (losses > 0).any() for losses in reference.aia_loss.values())
    assert all(gradient.abs().sum() > 0 for gradient in reference.gradients.values())
    assert {name.split(".")[0] for name in reference.gradients} == {
        *("embedding", "decoder", "output_layer"),
        *("vision_model", "vision_projection"),
        *("generation_embedding", "generation_projection", "generation_head"),
    }
