"""Mistakes that only show where several ranks share a sequence."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_aia.aia import inject
from megatron_aia.attention import context_parallel, flash_ops
from megatron_aia.models.janus_pro import model as janus
from megatron_aia.runtime.context_parallel_slices import slice_tensor
from megatron_aia.training import setup, step
from support.layouts import Layout

CP = {"context_parallel_size": 2}


def plant_sums_reduced_over_tensor_ranks_only() -> None:
    """A rank that judges its own rows alone sees a part of the intensity."""
    original = step.AIAContext

    def of_tensor_ranks(**kwargs: Any) -> inject.AIAContext:
        group = parallel_state.get_tensor_model_parallel_group()
        return original(**{**kwargs, "group": group})

    step.AIAContext = of_tensor_ranks  # type: ignore[misc, assignment]


def plant_own_queries_gradient_of_keys() -> None:
    """Keys are seen by the queries of all ranks that share a sequence."""

    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        place = (ctx.group.rank(), ctx.group.size())
        return (*(slice_tensor(gradient, *place, dim=0) for gradient in gradients), None)

    context_parallel._GatherKeysValues.backward = staticmethod(backward)


def plant_keys_in_the_order_of_ranks() -> None:
    """An all-gather returns the chunks rank by rank, which is not their order in the row."""
    context_parallel.join_slices = lambda parts, dim: torch.cat(list(parts), dim)


def plant_gradients_over_data_ranks_only() -> None:
    """megatron-core's wrapper must sum over the ranks that share a sequence too."""
    original = setup.DistributedDataParallel

    def over_data_ranks(*args: Any, pg_collection: Any, **kwargs: Any) -> Any:
        groups = copy.copy(pg_collection)
        groups.dp_cp = groups.dp
        return original(*args, pg_collection=groups, **kwargs)

    setup.DistributedDataParallel = over_data_ranks  # type: ignore[misc, assignment]


def plant_labels_counted_by_every_rank_of_a_row() -> None:
    """Ranks that share a sequence have the same samples."""
    original = step.count_step
    step.count_step = lambda batches, terms, _: original(
        batches, terms, parallel_state.get_data_parallel_group(with_context_parallel=True)
    )


def plant_causal_mask_from_the_first_key() -> None:
    """The CPU kernel aligns a causal mask of unequal lengths at the top left."""

    def forward(query: Any, key: Any, value: Any, scale: float, *rest: Any) -> Any:
        output, lse, extras = flash_ops._forward(query, key, value, True, scale, rest[0])
        return output, lse, (extras, extras)

    flash_ops.forward = forward


def plant_positions_cut_unlike_tokens() -> None:
    """Rotary angles of the first half of a row, whichever chunks a rank holds."""
    original = step.slice_for_rank

    def first_half(batch: Any, *place: Any) -> Any:
        held, kept = original(batch, *place)
        positions = batch.position_ids[:, : held.tokens.shape[1]]
        return replace(held, position_ids=positions), kept

    step.slice_for_rank = first_half


def plant_features_of_the_first_slots() -> None:
    """A rank that holds later slots needs the features of these."""
    original = janus.find_places

    def places(*arguments: Any) -> Any:
        found = original(*arguments)
        return replace(found, features=torch.arange(len(found.slots)))

    janus.find_places = places


# Mistake, processes, layout in which it must show.
CONTEXT_MISTAKES: list[tuple[Callable[[], None], int, Layout]] = [
    (plant_sums_reduced_over_tensor_ranks_only, 2, Layout(CP)),
    (plant_own_queries_gradient_of_keys, 2, Layout(CP)),
    (plant_keys_in_the_order_of_ranks, 2, Layout(CP)),
    (plant_gradients_over_data_ranks_only, 2, Layout(CP)),
    (plant_labels_counted_by_every_rank_of_a_row, 2, Layout(CP)),
    (plant_causal_mask_from_the_first_key, 2, Layout(CP)),
    (plant_positions_cut_unlike_tokens, 2, Layout(CP)),
    (plant_features_of_the_first_slots, 2, Layout(CP, family="janus_pro")),
]
