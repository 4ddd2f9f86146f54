"""Normalisers of the next-token loss against their definitions, sample by sample."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_aia.aia.roles import Task
from megatron_aia.data.batch import MicroBatch, build_micro_batch
from megatron_aia.data.sample import TokenizedSample
from megatron_aia.data.targets import NEXT_TOKEN, next_token_target
from megatron_aia.models.losses import NextToken
from megatron_aia.training.counts import StepCounts, count_step


@pytest.fixture(scope="module")
def world() -> dist.ProcessGroup:
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def sample(task: Task, length: int, labels: dict[int, float], active: bool) -> TokenizedSample:
    weights = np.zeros(length, np.float32)
    for position, weight in labels.items():
        weights[position] = weight
    roles = np.zeros(length, np.uint8)
    if active:
        roles[0], roles[-1] = int(task) << 2, int(task)
    tokens = np.arange(length)
    targets = {NEXT_TOKEN: next_token_target(tokens, weights)}
    return TokenizedSample(str(length), task, tokens, roles, targets)


SAMPLES = [
    sample(Task.GENERATION, 6, {3: 1.0, 4: 1.0, 5: 2.0}, active=True),
    sample(Task.GENERATION, 4, {2: 1.0}, active=False),
    sample(Task.UNDERSTANDING, 5, {4: 1.0}, active=True),
    sample(Task.TEXT, 3, {1: 1.0, 2: 0.5}, active=False),
    sample(Task.UNDERSTANDING, 3, {}, active=False),
]


def nll_of(batch: MicroBatch) -> torch.Tensor:
    """Made-up losses that depend on the token alone, so rows may be laid out at will."""
    return torch.cos(batch.targets[NEXT_TOKEN].values.double() * 0.7) + 2


def definition(normalizer: str) -> float:
    """The loss of AIA.md, section 2, written sample by sample."""
    terms = []
    for s in SAMPLES:
        nll = np.cos(s.tokens * 0.7) + 2
        terms.append((s.task, float((s.label_weights * nll).sum()), float(s.label_weights.sum())))
    labelled = [t for t in terms if t[2] > 0]
    if normalizer == "token":
        return sum(t[1] for t in terms) / sum(t[2] for t in terms)
    if normalizer == "sample":
        return sum(t[1] / t[2] for t in labelled) / len(labelled)
    total = 0.0
    for task in {t[0] for t in labelled}:
        own = [t for t in labelled if t[0] == task]
        share = 1 if normalizer == "task_mean" else len(own) / len(labelled)
        total += share * sum(t[1] for t in own) / sum(t[2] for t in own)
    return total


@pytest.mark.parametrize("normalizer", ["task", "task_mean", "token", "sample"])
@pytest.mark.parametrize(
    "rows", [[[0, 1, 2, 3, 4]], [[0], [1], [2], [3], [4]], [[3, 0], [], [2, 1, 4]]]
)
def test_sum_over_rows_is_the_definition(
    normalizer: str, rows: list[list[int]], world: dist.ProcessGroup
) -> None:
    batches = [build_micro_batch([[SAMPLES[i] for i in row]], 32, pad_id=0) for row in rows]
    term = NextToken(normalization=normalizer)  # type: ignore[arg-type]
    counts = count_step(batches, [term], world)
    total = 0.0
    for batch in batches:
        coefficients = term.coefficients(batch, counts.of_term["ntp"])
        total += float((coefficients.double() * nll_of(batch)).sum())
    assert total == pytest.approx(definition(normalizer), rel=1e-6)


def test_counts(world: dist.ProcessGroup) -> None:
    batch = build_micro_batch([SAMPLES[:3], SAMPLES[3:]], 16, pad_id=0)
    counts: StepCounts = count_step([batch], [NextToken()], world)
    assert counts.of_term["ntp"].tolist() == [1, 2, 1, 0, 1.5, 5, 1, 0]
    assert (counts.intensities, counts.inactive, counts.tokens, counts.positions) == (2, 3, 21, 32)


def test_step_without_labels_has_loss_zero_not_nan(world: dist.ProcessGroup) -> None:
    batch = build_micro_batch([[SAMPLES[4]], []], 8, pad_id=0)
    for normalizer in ("task", "task_mean", "token", "sample"):
        term = NextToken(normalization=normalizer)  # type: ignore[arg-type]
        counts = count_step([batch], [term], world)
        assert counts.of_term["ntp"].eq(0).all()
        assert term.coefficients(batch, counts.of_term["ntp"]).shape == (0,)
