"""Known mistakes with the normalisers of loss terms, the frozen teacher and a tied embedding.

A mistake is planted through a ``MonkeyPatch``, so that one launch can plant one after the other.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from megatron.core.distributed.finalize_model_grads import finalize_model_grads

from megatron_aia.models.losses import TargetTerm
from megatron_aia.training import counts, step, teacher
from support.layouts import Layout

Plant = Callable[[pytest.MonkeyPatch], None]


def count_one_rank_alone(patch: pytest.MonkeyPatch) -> None:
    """Every rank weighs its entries by the batch that it happens to hold."""
    patch.setattr(
        counts, "dist", type("Alone", (), {"all_reduce": staticmethod(lambda *a, **k: None)})
    )


def count_one_micro_batch_alone(patch: pytest.MonkeyPatch) -> None:
    """A mean of means: entries of small micro-batches weigh more."""
    original = TargetTerm.coefficients
    patch.setattr(
        TargetTerm, "coefficients", lambda self, batch, _: original(self, batch, self.counts(batch))
    )


def count_the_held_part_of_a_sample(patch: pytest.MonkeyPatch) -> None:
    """Under context parallelism, each part of a sample is taken for a whole one."""
    held_by: dict[int, Any] = {}
    slice_for_rank, coefficients = step.slice_for_rank, TargetTerm.coefficients

    def remember(batch: Any, *place: int) -> Any:
        held, kept = slice_for_rank(batch, *place)
        held_by[id(batch)] = held
        return held, {name: torch.arange(len(numbers)) for name, numbers in kept.items()}

    patch.setattr(step, "slice_for_rank", remember)
    patch.setattr(
        TargetTerm,
        "coefficients",
        lambda self, batch, sums: coefficients(self, held_by[id(batch)], sums),
    )


def take_the_first_coefficients(patch: pytest.MonkeyPatch) -> None:
    """A rank's entries are not the first ones of the sequence."""
    original = step.slice_for_rank

    def first(batch: Any, *place: int) -> Any:
        held, kept = original(batch, *place)
        return held, {name: torch.arange(len(numbers)) for name, numbers in kept.items()}

    patch.setattr(step, "slice_for_rank", first)


def number_samples_by_sequence(patch: pytest.MonkeyPatch) -> None:
    """Samples of a second sequence are counted as those of the first."""
    original = TargetTerm.coefficients

    def coefficients(self: Any, batch: Any, sums: Any) -> Any:
        starts = torch.tensor([segment.batch_index for segment in batch.segments])
        first = torch.tensor([(starts == s).nonzero()[0, 0] for s in starts])
        numbers = torch.arange(len(starts)) - first
        target = batch.targets[self.target]
        mixed = replace(target, samples=numbers[target.samples])
        return original(self, replace(batch, targets={self.target: mixed}), sums)

    patch.setattr(TargetTerm, "coefficients", coefficients)


def leave_the_teacher_unloaded(patch: pytest.MonkeyPatch) -> None:
    """A teacher of whatever weights it was built with."""
    patch.setattr(teacher, "load_weights", lambda *_: None)


def compare_with_a_neighbour(patch: pytest.MonkeyPatch) -> None:
    """What the teacher says of one entry judges the next one."""
    original = teacher._keep
    patch.setattr(
        teacher,
        "_keep",
        lambda outputs, non_loss_data: {
            name: output.roll(1, 0) for name, output in original(outputs, non_loss_data).items()
        },
    )


def let_the_teacher_see_other_samples(patch: pytest.MonkeyPatch) -> None:
    """A packed sequence as one sample."""
    original = teacher.Teacher._aia

    def whole(self: Any, batch: Any) -> Any:
        ends = {s.batch_index: s.stop for s in batch.segments}
        joined = tuple(
            replace(segment, stop=ends[segment.batch_index])
            for segment in batch.segments
            if segment.start == 0
        )
        return original(self, replace(batch, segments=joined))

    patch.setattr(teacher.Teacher, "_aia", whole)


def keep_the_embedding_of_each_stage(patch: pytest.MonkeyPatch) -> None:
    """First and last stage each hold the tied matrix, and a part of its gradient."""
    # The package's name for the module is that of the function in it.
    module = sys.modules[finalize_model_grads.__module__]
    patch.setattr(module, "_allreduce_word_embedding_grads", lambda *args, **kwargs: None)


TOY = Layout(family="toy")
UNPACKED = replace(TOY, packing=False)
CP2 = replace(TOY, parallel={"context_parallel_size": 2})
PP2 = replace(TOY, parallel={"pipeline_model_parallel_size": 2})

TOY_MISTAKES: dict[int, list[tuple[Plant, Layout]]] = {
    1: [
        (count_one_micro_batch_alone, TOY),
        (number_samples_by_sequence, replace(UNPACKED, micro_batch_size=2)),
        (leave_the_teacher_unloaded, TOY),
        (compare_with_a_neighbour, TOY),
        (let_the_teacher_see_other_samples, TOY),
    ],
    2: [
        (count_one_rank_alone, TOY),
        (count_the_held_part_of_a_sample, CP2),
        (take_the_first_coefficients, CP2),
        (keep_the_embedding_of_each_stage, PP2),
    ],
}
"""By number of processes: a mistake and the layout in which it must show."""
