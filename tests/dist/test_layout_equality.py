"""Promise 1: loss, every AIA term, every gradient and three updates are equal in every layout."""

from pathlib import Path

import pytest
import torch
from support.layouts import Layout, LayoutSuite, StepResult, run_layouts
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

REFERENCE = {"reference": Layout(method="eager", packing=False)}
LAYOUTS = {
    1: {
        "packed": Layout(),
        "unpacked": Layout(packing=False),
        "micro-batch 2": Layout(micro_batch_size=2),
        "micro-batch 4": Layout(micro_batch_size=4),
        "micro-batch 4 unpacked": Layout(micro_batch_size=4, packing=False),
        "selective recompute": Layout(SELECTIVE),
        "full recompute": Layout(FULL),
        "block recompute": Layout({**FULL, "recompute_method": "block", "recompute_num_layers": 2}),
        "dense attention": Layout(method="eager"),
        "variable lengths": Layout(packing=False, micro_batch_size=2, variable_lengths=True),
    },
    2: {
        "TP 2": Layout(TP),
        "TP 2 + SP": Layout({**TP, **SP}),
        "PP 2": Layout(PP),
        "PP 2 x VPP 2": Layout({**PP, **VPP}, packing=False),
        "DP 2": Layout(micro_batch_size=2),
        "DP 2 distributed optimizer": Layout(ZERO),
        "DP 2 overlapped": Layout(OVERLAP, packing=False),
        "TP 2 + SP + full recompute": Layout({**TP, **SP, **FULL}),
        "TP 2 + SP, variable lengths": Layout({**TP, **SP}, packing=False, variable_lengths=True),
        "PP 2, variable lengths": Layout(PP, packing=False, variable_lengths=True),
        "CP 2, variable lengths": Layout(CP, packing=False, variable_lengths=True),
        "DP 2, variable lengths": Layout(micro_batch_size=2, packing=False, variable_lengths=True),
        "PP 2 + full recompute": Layout({**PP, **FULL}, packing=False),
        "PP 2 + selective recompute": Layout({**PP, **SELECTIVE}, micro_batch_size=2),
        "CP 2": Layout(CP),
        "CP 2 unpacked": Layout(CP, packing=False, micro_batch_size=2),
        "CP 2 dense attention": Layout(CP, method="eager"),
        "CP 2 overlapped": Layout({**CP, **OVERLAP}),
        "CP 2 + full recompute": Layout({**CP, **FULL}),
        "CP 2 + selective recompute": Layout({**CP, **SELECTIVE}, packing=False),
    },
    4: {
        "TP 2 x PP 2": Layout({**TP, **PP}),
        "TP 2 x PP 2 + SP, distributed optimizer": Layout({**TP, **PP, **SP, **ZERO}),
        "TP 2 x PP 2 x VPP 2 + SP + recompute": Layout({**TP, **PP, **VPP, **SP, **FULL}),
        "DP 2 x TP 2": Layout(TP, packing=False),
        "DP 2 x PP 2 x VPP 2": Layout({**PP, **VPP, **ZERO}),
        "PP 4": Layout({"pipeline_model_parallel_size": 4}),
        "CP 4": Layout({"context_parallel_size": 4}, micro_batch_size=2),
        "CP 4 dense attention unpacked": Layout(
            {"context_parallel_size": 4}, packing=False, method="eager"
        ),
        "TP 2 x CP 2": Layout({**TP, **CP}),
        "TP 2 x CP 2 + SP": Layout({**TP, **CP, **SP}, packing=False),
        "TP 2 x CP 2 + SP + recompute, distributed optimizer": Layout(
            {**TP, **CP, **SP, **FULL, **ZERO}, method="eager"
        ),
        "PP 2 x CP 2": Layout({**PP, **CP}),
        "PP 2 x VPP 2 x CP 2 + selective recompute": Layout({**PP, **VPP, **CP, **SELECTIVE}),
        "DP 2 x CP 2": Layout(CP),
        "DP 2 x CP 2 distributed optimizer": Layout({**CP, **ZERO}, packing=False),
    },
    8: {"TP 2 x PP 2 x CP 2 + SP": Layout({**TP, **PP, **CP, **SP})},
}

SUITE = LayoutSuite(LAYOUTS)

WITHOUT_AIA = {
    1: {"reference without AIA": Layout(packing=False, aia=False)},
    2: {
        "CP 2": Layout(CP, aia=False),
        "CP 2 dense attention unpacked": Layout(CP, packing=False, method="eager", aia=False),
    },
    4: {
        "TP 2 x CP 2 + SP + selective recompute": Layout(
            {**TP, **CP, **SP, **SELECTIVE}, aia=False
        ),
        "PP 2 x CP 2": Layout({**PP, **CP}, micro_batch_size=2, aia=False),
    },
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def reference(shards: Path) -> StepResult:
    result: StepResult = spawn(run_layouts, 1, shards, REFERENCE)["reference"]
    return result


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |actual - expected| / |expected| in the 2-norm."""
    difference = torch.linalg.vector_norm((actual - expected).double())
    return float(difference / torch.linalg.vector_norm(expected.double()))


@pytest.mark.parametrize("name", SUITE.by_name)
def test_equal_to_one_process(name: str, shards: Path, reference: StepResult) -> None:
    check(SUITE.result(name, shards), reference, SUITE.by_name[name])


def test_rows_of_several_ranks_without_aia(shards: Path) -> None:
    """In one process it is megatron-core's own attention, which cannot share sequences."""
    found: dict[str, StepResult] = {}
    for world_size, layouts in WITHOUT_AIA.items():
        found.update(spawn(run_layouts, world_size, shards, layouts))
    expected = found.pop("reference without AIA")
    assert not expected.aia_loss
    for result in found.values():
        check(result, expected, Layout(aia=False))


def check(result: StepResult, reference: StepResult, layout: Layout) -> None:
    assert relative_error(result.losses, reference.losses) < TOLERANCE
    assert result.aia_loss.keys() == reference.aia_loss.keys()
    for layer, losses in reference.aia_loss.items():
        assert relative_error(result.aia_loss[layer], losses) < TOLERANCE, f"AIA, layer {layer}"
    if not layout.parallel.get("use_distributed_optimizer"):
        # With it, a rank keeps the sum of its own shard only; norms and weights show the rest.
        for parameter, gradient in reference.gradients.items():
            error = relative_error(result.gradients[parameter], gradient)
            assert error < TOLERANCE, f"gradient of {parameter}"
    assert result.grad_norms == pytest.approx(reference.grad_norms, rel=TOLERANCE)
    for parameter, weight in reference.weights.items():
        assert relative_error(result.weights[parameter], weight) < TOLERANCE, parameter


def test_numbers_are_those_of_the_last_release(reference: StepResult) -> None:
    """Committed numbers: a change of any of them is a change of the training, to be explained."""
    golden = [6.4635, 30.8611, 162.7371, 143.5914, 46.7293]
    assert reference.losses[0].tolist() == pytest.approx(golden, rel=1e-4)
    aia = [float(losses.sum()) for losses in reference.aia_loss.values()]
    assert aia == pytest.approx([0.213563, 0.112999, 0.128111, 0.112058], rel=1e-4)
    assert reference.grad_norms == pytest.approx([9.75825, 8.34832, 6.40648], rel=1e-4)


def test_reference_step_is_worth_comparing(reference: StepResult) -> None:
    """All tasks, both AIA terms, and gradients everywhere: nothing passes by being zero."""
    assert (reference.losses > 0).all()
    assert all(len(losses) >= 6 and (losses > 0).any() for losses in reference.aia_loss.values())
    assert all(gradient.abs().sum() > 0 for gradient in reference.gradients.values())
