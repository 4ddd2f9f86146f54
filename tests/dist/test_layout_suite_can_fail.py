"""Plants known mistakes and asks whether the comparison of layouts sees each of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from megatron.core.optimizer import ChainedOptimizer
from support.context_mistakes import CONTEXT_MISTAKES, CP
from support.layouts import Layout, StepResult, run_layout, tiny_config
from support.spawn import spawn
from support.tiny_data import write_shards
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from megatron_aia.aia import inject
from megatron_aia.models import backbone, layers
from megatron_aia.models.janus_pro import network
from megatron_aia.models.norm import RMSNorm
from megatron_aia.runtime import recompute
from megatron_aia.training import counts, setup, step

VISIBLE = 1e-3
TP = {"tensor_model_parallel_size": 2}
PP_INTERLEAVED = {
    "pipeline_model_parallel_size": 2,
    "num_layers_per_virtual_pipeline_stage": 1,
}


def plant_differentiable_all_reduce() -> None:
    """The backward of an all-reduce sums what every rank has computed alike."""
    original = inject.AIAContext.attach

    def attach(self: Any, output: Tensor, sums: Tensor, *place: int) -> Tensor:
        group, self.group = self.group, None  # it is reduced already
        output = original(self, output, all_reduce(sums.clone(), group=group), *place)
        self.group = group
        return output

    inject.AIAContext.attach = attach  # type: ignore[method-assign]


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
    counts.dist = type("NoReduction", (), {"all_reduce": staticmethod(lambda *a, **k: None)})


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
    recompute.is_first_pass = lambda: True


def plant_head_without_reduction() -> None:
    """A head that keeps its gradient to itself leaves the decoder a part of it."""
    original = network.JanusModel.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.post_process:
            self.output_layer.allreduce_dgrad = False
            self.output_layer.disable_grad_reduce = True

    network.JanusModel.__init__ = init  # type: ignore[method-assign]


def plant_summed_gather() -> None:
    """A gather that sums gradients of heads that have summed theirs makes them tp times too big."""
    original = network.gather_from_sequence_parallel_region
    network.gather_from_sequence_parallel_region = lambda hidden, *args, **kwargs: original(
        hidden, group=kwargs["group"]
    )


def plant_images_out_of_order() -> None:
    """The images of a micro-batch follow its layout, and so must their slots."""
    original = network.JanusModel._embed_images
    network.JanusModel._embed_images = (  # type: ignore[method-assign]
        lambda self, images: original(self, images if images is None else images.flip(0))
    )


def plant_padding_in_the_softmax_of_codes() -> None:
    """Padding of the codebook grows with tensor parallelism as that of the vocabulary does."""
    network.JanusModel.token_losses = (  # type: ignore[method-assign]
        lambda self, labels, logits, size: backbone.GPTModel.compute_language_model_loss(
            self, labels, logits
        )
    )


JANUS = {"family": "janus_pro"}

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
    (plant_head_without_reduction, 2, Layout(TP, **JANUS)),
    (plant_summed_gather, 2, Layout({**TP, "sequence_parallel": True}, **JANUS)),
    (plant_images_out_of_order, 1, Layout(micro_batch_size=4, **JANUS)),
    (plant_padding_in_the_softmax_of_codes, 2, Layout(TP, **JANUS)),
    *CONTEXT_MISTAKES,
]


def run_with(plant: Callable[[], None] | None, data: Path, layout: Layout) -> StepResult:
    if plant is not None:
        plant()
        # It would stop the run with some of these mistakes before its first step.
        layers.check_method = lambda method, *_: method
    config = tiny_config(data, layout)
    strong = replace(config.aia, aia_lambda_generation=4000.0, aia_lambda_understanding=4000.0)
    return run_layout(replace(config, aia=strong), num_steps=1, check_replicas=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A data folder by family."""
    return {
        family: write_shards(tmp_path_factory.mktemp(family), family=family)
        for family in ("emu3", "janus_pro")
    }


@pytest.fixture(scope="module")
def reference(shards: dict[str, Path]) -> dict[str, StepResult]:
    return {
        family: spawn(run_with, 1, None, folder, Layout(family=family))
        for family, folder in shards.items()
    }


@pytest.mark.parametrize(
    ("plant", "world_size", "layout"), TRAPS, ids=[trap[0].__name__ for trap in TRAPS]
)
def test_mistake_is_seen(
    plant: Callable[[], None],
    world_size: int,
    layout: Layout,
    shards: dict[str, Path],
    reference: dict[str, StepResult],
) -> None:
    result = spawn(run_with, world_size, plant, shards[layout.family], layout)
    errors = [
        float((result.gradients[name] - expected).norm() / expected.norm())
        for name, expected in reference[layout.family].gradients.items()
    ]
    assert max(errors) > VISIBLE


@pytest.mark.parametrize("layout", [Layout(TP), Layout(CP)], ids=["TP 2", "CP 2"])
def test_nothing_is_seen_without_a_mistake(
    layout: Layout, shards: dict[str, Path], reference: dict[str, StepResult]
) -> None:
    """The term is strong here, and the tolerance is that of the suite."""
    result = spawn(run_with, 2, None, shards["emu3"], layout)
    for name, expected in reference["emu3"].gradients.items():
        assert float((result.gradients[name] - expected).norm() / expected.norm()) < 1e-5, name


def run_three_steps_without_zero_grad(data: Path, layout: Layout) -> StepResult:
    """Left as an alias of the gradient buffer, `grad` counts the next first micro-batch twice."""
    ChainedOptimizer.zero_grad = lambda self, *args: None  # type: ignore[method-assign]
    return run_layout(tiny_config(data, layout))


def test_stale_gradients_are_seen_by_the_later_steps(shards: dict[str, Path]) -> None:
    one_row, two_rows = (
        spawn(run_three_steps_without_zero_grad, 1, shards["emu3"], Layout(micro_batch_size=size))
        for size in (1, 2)
    )
    assert one_row.grad_norms[0] == pytest.approx(two_rows.grad_norms[0], rel=1e-5)
    assert one_row.grad_norms[1] != pytest.approx(two_rows.grad_norms[1], rel=VISIBLE)
