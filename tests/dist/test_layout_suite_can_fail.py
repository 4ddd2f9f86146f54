"""Plants known mistakes and asks whether the comparison of layouts sees each of them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import Layout, StepResult, run_layout, tiny_config
from support.spawn import spawn
from support.tiny_data import write_shards

from megatron.core import parallel_state
from megatron.core.optimizer import ChainedOptimizer

from megatron_aia.aia import inject
from megatron_aia.aia.loss import AlignObjective
from megatron_aia.attention import context_parallel, core_attention, flash_ops
from megatron_aia.models import backbone
from megatron_aia.models.norm import RMSNorm
from megatron_aia.runtime.row_chunks import take_held
from megatron_aia.training import losses, setup, step

VISIBLE = 1e-3
TP = {"tensor_model_parallel_size": 2}
CP = {"context_parallel_size": 2}
PP_INTERLEAVED = {
    "pipeline_model_parallel_size": 2,
    "num_layers_per_virtual_pipeline_stage": 1,
}


def plant_differentiable_all_reduce() -> None:
    """The term is tp times too strong if its reduction is differentiated too."""
    original = AlignObjective.gradient
    AlignObjective.gradient = lambda *args: 2 * original(*args)  # type: ignore[method-assign]


def plant_huber_before_reduction() -> None:
    """A rank that judges its own heads alone sees half of the intensity."""
    original = inject.PendingSum.__init__
    inject.PendingSum.__init__ = (  # type: ignore[method-assign]
        lambda self, value, group: original(self, value, None)
    )


def plant_mean_over_data_parallel_ranks() -> None:
    """megatron-core's default averages gradients over data-parallel ranks."""
    original = step.sum_gradients

    def mean(models: Any, *args: Any, **kwargs: Any) -> None:
        original(models, *args, **kwargs)
        for model in models:
            model.scale_gradients(0.5)

    setup.sum_gradients = mean  # type: ignore[attr-defined]


def plant_local_normalisers() -> None:
    """Counts of one rank alone weigh its samples by how many neighbours they happen to have."""
    losses.dist = type("NoReduction", (), {"all_reduce": staticmethod(lambda *a, **k: None)})


def plant_norm_without_mark() -> None:
    """Unmarked norm weights keep each rank's own gradient under sequence parallelism."""
    original = RMSNorm.__init__

    def unmarked(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.weight.sequence_parallel = False

    RMSNorm.__init__ = unmarked  # type: ignore[method-assign]


def plant_padding_in_the_softmax() -> None:
    """Padding of the vocabulary grows with tensor parallelism, and so would the loss."""
    backbone.PackedGPTModel.compute_language_model_loss = (  # type: ignore[method-assign]
        backbone.GPTModel.compute_language_model_loss
    )


def plant_batched_p2p() -> None:
    """On two interleaved stages both neighbours are one process, and batched messages mix up."""
    original = backbone.transformer_config

    def batched(*args: Any) -> Any:
        core = original(*args)
        core.overlap_p2p_comm, core.batch_p2p_comm = False, True
        return core

    backbone.transformer_config = batched


def plant_no_term_under_recompute() -> None:
    """A guard that takes the second pass of recompute for the first loses the whole term."""
    core_attention._is_first_pass_of_recompute = lambda: True


def plant_sums_reduced_over_tensor_ranks_only() -> None:
    """A rank that judges its own rows alone sees a part of the intensity."""
    original = step.AlignInput

    def of_tensor_ranks(**kwargs: Any) -> inject.AlignInput:
        group = parallel_state.get_tensor_model_parallel_group()
        return original(**{**kwargs, "group": group})

    step.AlignInput = of_tensor_ranks  # type: ignore[misc, assignment]


def plant_own_queries_gradient_of_keys() -> None:
    """Keys are seen by the queries of all ranks that share a row."""

    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        place = (ctx.group.rank(), ctx.group.size())
        return (*(take_held(gradient, *place, dim=0) for gradient in gradients), None)

    context_parallel._GatherRow.backward = staticmethod(backward)


def plant_keys_in_the_order_of_ranks() -> None:
    """An all-gather returns the chunks rank by rank, which is not their order in the row."""
    context_parallel.join_held = lambda parts, dim: torch.cat(list(parts), dim)


def plant_gradients_over_data_ranks_only() -> None:
    """megatron-core's wrapper must sum over the ranks that share a row too."""
    original = setup.DistributedDataParallel

    def over_data_ranks(*args: Any, pg_collection: Any, **kwargs: Any) -> Any:
        groups = copy.copy(pg_collection)
        groups.dp_cp = groups.dp
        return original(*args, pg_collection=groups, **kwargs)

    setup.DistributedDataParallel = over_data_ranks  # type: ignore[misc, assignment]


def plant_labels_counted_by_every_rank_of_a_row() -> None:
    """Ranks that share a row have the same samples."""
    original = step.count_step
    step.count_step = lambda batches, _: original(
        batches, parallel_state.get_data_parallel_group(with_context_parallel=True)
    )


def plant_causal_mask_from_the_first_key() -> None:
    """The CPU kernel aligns a causal mask of unequal lengths at the top left."""

    def forward(query: Any, key: Any, value: Any, scale: float) -> Any:
        output, lse, extras = flash_ops._forward(query, key, value, True, scale)
        return output, lse, (extras, extras)

    flash_ops.forward = forward


def plant_positions_cut_unlike_tokens() -> None:
    """Rotary angles of the first half of a row, whichever chunks a rank holds."""
    original = step.held_by_rank

    def first_half(batch: Any, *place: Any) -> Any:
        held = original(batch, *place)
        return replace(held, position_ids=batch.position_ids[:, : held.tokens.shape[1]])

    step.held_by_rank = first_half


# Mistake, processes, layout in which it must show.
TRAPS: list[tuple[Callable[[], None], int, Layout]] = [
    (plant_differentiable_all_reduce, 2, Layout(TP)),
    (plant_huber_before_reduction, 2, Layout(TP)),
    (plant_mean_over_data_parallel_ranks, 2, Layout()),
    (plant_local_normalisers, 2, Layout()),
    (plant_norm_without_mark, 2, Layout({**TP, "sequence_parallel": True})),
    (plant_padding_in_the_softmax, 2, Layout(TP)),
    (plant_batched_p2p, 2, Layout(PP_INTERLEAVED)),
    (plant_no_term_under_recompute, 1, Layout({"recompute_granularity": "full"})),
    (plant_sums_reduced_over_tensor_ranks_only, 2, Layout(CP)),
    (plant_own_queries_gradient_of_keys, 2, Layout(CP)),
    (plant_keys_in_the_order_of_ranks, 2, Layout(CP)),
    (plant_gradients_over_data_ranks_only, 2, Layout(CP)),
    (plant_labels_counted_by_every_rank_of_a_row, 2, Layout(CP)),
    (plant_causal_mask_from_the_first_key, 2, Layout(CP)),
    (plant_positions_cut_unlike_tokens, 2, Layout(CP)),
]


def run_with(plant: Callable[[], None] | None, data: Path, layout: Layout) -> StepResult:
    if plant is not None:
        plant()
    config = tiny_config(data, layout)
    strong = replace(config.aia, aia_lambda_generation=4000.0, aia_lambda_understanding=4000.0)
    return run_layout(replace(config, aia=strong), num_steps=1, check_replicas=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def reference(shards: Path) -> StepResult:
    result: StepResult = spawn(run_with, 1, None, shards, Layout())
    return result


@pytest.mark.parametrize(
    ("plant", "world_size", "layout"), TRAPS, ids=[trap[0].__name__ for trap in TRAPS]
)
def test_mistake_is_seen(
    plant: Callable[[], None],
    world_size: int,
    layout: Layout,
    shards: Path,
    reference: StepResult,
) -> None:
    result = spawn(run_with, world_size, plant, shards, layout)
    errors = [
        float((result.gradients[name] - expected).norm() / expected.norm())
        for name, expected in reference.gradients.items()
    ]
    assert max(errors) > VISIBLE


@pytest.mark.parametrize("layout", [Layout(TP), Layout(CP)], ids=["TP 2", "CP 2"])
def test_nothing_is_seen_without_a_mistake(
    layout: Layout, shards: Path, reference: StepResult
) -> None:
    """The term is strong here, and the tolerance is that of the suite."""
    result = spawn(run_with, 2, None, shards, layout)
    for name, expected in reference.gradients.items():
        assert float((result.gradients[name] - expected).norm() / expected.norm()) < 1e-5, name


def run_three_steps_without_zero_grad(data: Path, layout: Layout) -> StepResult:
    """Left as an alias of the gradient buffer, `grad` counts the next first micro-batch twice."""
    ChainedOptimizer.zero_grad = lambda self, *args: None  # type: ignore[method-assign]
    return run_layout(tiny_config(data, layout))


def test_stale_gradients_are_seen_by_the_later_steps(shards: Path) -> None:
    one_row, two_rows = (
        spawn(run_three_steps_without_zero_grad, 1, shards, Layout(micro_batch_size=size))
        for size in (1, 2)
    )
    assert one_row.grad_norms[0] == pytest.approx(two_rows.grad_norms[0], rel=1e-5)
    assert one_row.grad_norms[1] != pytest.approx(two_rows.grad_norms[1], rel=VISIBLE)
