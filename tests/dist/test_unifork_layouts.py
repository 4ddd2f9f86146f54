"""Promise 1 for UniFork: the branch that a sample takes, and the idle one, in every layout."""

from pathlib import Path
from typing import Any

import pytest
from support.layouts import Layout, LayoutSuite, StepResult, relative_error, run_layouts
from support.spawn import spawn
from support.tiny_data import write_shards

pytestmark = pytest.mark.versions

TOLERANCE = 1e-5
# Biases of keys hardly change a softmax: Adam's own epsilon would make steps of rounding errors.
ADAM_EPS = 1e-3
UNSEEN = "key.bias"
"""A softmax does not see it: its gradient is rounding alone."""
TP = {"tensor_model_parallel_size": 2}
CP = {"context_parallel_size": 2}
PP = {"pipeline_model_parallel_size": 2}
SP = {"sequence_parallel": True}
VPP = {"num_layers_per_virtual_pipeline_stage": 1}
ZERO = {"use_distributed_optimizer": True}
OVERLAP = {**ZERO, "overlap_grad_reduce": True, "overlap_param_gather": True}
FULL = {"recompute_granularity": "full"}


def unifork(parallel: dict[str, Any] | None = None, **values: Any) -> Layout:
    return Layout(parallel or {}, family="unifork", **values)


REFERENCE = {"reference": unifork(method="eager", packing=False)}
LAYOUTS = {
    1: {
        "packed": unifork(),
        "micro-batch 2, full recompute": unifork(FULL, micro_batch_size=2),
    },
    2: {
        "TP 2": unifork(TP),
        "TP 2 + SP": unifork({**TP, **SP}),
        "PP 2": unifork(PP),
        "PP 2 x VPP 2": unifork({**PP, **VPP}, packing=False),
        "DP 2": unifork(micro_batch_size=2),
        "DP 2 overlapped": unifork(OVERLAP, packing=False),
        "CP 2": unifork(CP),
    },
    4: {
        "TP 2 x PP 2 + SP, distributed optimizer": unifork({**TP, **PP, **SP, **ZERO}),
        "TP 2 x CP 2 + SP + recompute": unifork({**TP, **CP, **SP, **FULL}),
    },
}
SUITE = LayoutSuite(LAYOUTS, adam_eps=ADAM_EPS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), family="unifork")


def run_reference(shards: Path) -> Any:
    return run_layouts(shards, REFERENCE, adam_eps=ADAM_EPS)


@pytest.fixture(scope="module")
def reference(shards: Path) -> StepResult:
    result: StepResult = spawn(run_reference, 1, shards)["reference"]
    return result


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LAYOUTS[4] else name
        for name in SUITE.by_name
    ],
)
def test_equal_to_one_process(name: str, shards: Path, reference: StepResult) -> None:
    result = SUITE.result(name, shards)
    assert relative_error(result.losses, reference.losses) < TOLERANCE
    assert result.aia_loss.keys() == reference.aia_loss.keys() == set(range(4))
    for layer, losses in reference.aia_loss.items():
        assert relative_error(result.aia_loss[layer], losses) < TOLERANCE, f"AIA, layer {layer}"
    if not SUITE.by_name[name].parallel.get("use_distributed_optimizer"):
        # With it, a rank keeps the sum of its own shard only; norms and weights show the rest.
        for parameter, gradient in reference.gradients.items():
            if parameter.endswith(UNSEEN):
                continue
            error = relative_error(result.gradients[parameter], gradient)
            assert error < TOLERANCE, f"gradient of {parameter}"
    assert result.grad_norms == pytest.approx(reference.grad_norms, rel=TOLERANCE)
    for parameter, weight in reference.weights.items():
        if not parameter.endswith(UNSEEN):
            assert relative_error(result.weights[parameter], weight) < TOLERANCE, parameter


def test_every_weight_takes_part(reference: StepResult) -> None:
    # The whole, then each task; no sample is mixed.
    assert (reference.losses[0, :-1] > 0).all()
    assert all(gradient.abs().sum() > 0 for gradient in reference.gradients.values())
    names = {name.split(".")[0] for name in reference.gradients}
    assert names == {
        *("embedding", "code_projection", "markers", "decoder", "final_norms", "depth_head"),
    }
    forked = [name for name in reference.gradients if ".generation." in name]
    assert {int(name.split(".")[2]) for name in forked if name.startswith("decoder")} == {2, 3}
