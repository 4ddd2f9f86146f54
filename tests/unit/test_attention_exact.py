"""All attention methods, and the loss through them, against the definition in float64.

`sampled` measures all queries here, which makes it exact; ``test_attention_sampled.py`` samples.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import attention_cases as cases
import numpy as np
import pytest
import reference
import torch
from attention_cases import make_case
from attention_checks import METHODS, TOLERANCE, check, num_terms, run, run_reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.loss import AIALoss
from megatron_aia.aia.profile import LayerTargets
from megatron_aia.aia.roles import AIA_TASKS, Task
from megatron_aia.attention import rectangle, sampled
from megatron_aia.attention.layout import AttentionLayout

torch.set_num_threads(1)

ROWS = {
    "generation": [[cases.GENERATION]],
    "understanding": [[cases.UNDERSTANDING]],
    "one-token answer": [[cases.ONE_TOKEN_ANSWER]],
    "both tasks": [[cases.BOTH_TASKS]],
    "rows among their keys": [[cases.ROWS_AMONG_THEIR_KEYS]],
    "interleaved": [[cases.INTERLEAVED]],
    "inactive between active": [[cases.GENERATION, cases.TEXT, cases.UNDERSTANDING]],
    "packed": [
        [cases.GENERATION, cases.ONE_TOKEN_SAMPLE, cases.INTERLEAVED],
        [cases.UNDERSTANDING, cases.TEXT],
        [],
        [cases.BOTH_TASKS, cases.ONE_TOKEN_ANSWER],
    ],
}

INACTIVE = [[cases.TEXT, cases.ROWS_WITHOUT_KEYS], [cases.KEYS_ONLY_AFTER_ROWS]]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", ROWS)
def test_samples_of_every_kind(method: str, rows: str, dtype: torch.dtype) -> None:
    check(method, make_case(ROWS[rows]), dtype)


@pytest.mark.parametrize("method", METHODS)
def test_without_terms(method: str) -> None:
    case = make_case(INACTIVE)
    got = run(METHODS[method], case, torch.zeros(0), torch.float64)
    inputs = case.inputs()
    output, intensities = reference.attention(*inputs, case.segments, case.scale)
    (output * case.grad_output).sum().backward()
    assert intensities == []
    assert got[1].shape == (0,)
    for a, b in zip([got[0], *got[2:]], [output, *(x.grad for x in inputs)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head_size", [16, 24, 32, 64, 80, 96, 128])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_head_sizes_and_query_groups(head_size: int, groups: int) -> None:
    case = make_case(ROWS["packed"], groups=groups, head_size=head_size)
    for dtype in TOLERANCE:
        check("flash", case, dtype)
        check("sampled", case, dtype)
    check("eager", case, torch.float64)


def first_channel_only(x: Tensor) -> Tensor:
    return x * (torch.arange(x.shape[-1]) == 0)


DEGENERATE: dict[str, Callable[[Tensor], Tensor]] = {
    "no gradient at all": torch.zeros_like,
    "zero rows": lambda x: x * (torch.arange(x.shape[2]) % 3 > 0).unsqueeze(-1),
    "tiny rows": lambda x: x * 10.0 ** -(torch.arange(x.shape[2]) % 16).unsqueeze(-1),
    "underflowing squares": lambda x: x * 1e-25,
    "one channel": first_channel_only,
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("strength", [1e-9, 1.0, 100.0])
@pytest.mark.parametrize("degenerate", DEGENERATE)
def test_rows_with_little_or_no_output_gradient(
    degenerate: str, strength: float, dtype: torch.dtype
) -> None:
    case = make_case(ROWS["packed"])
    changed = DEGENERATE[degenerate](case.grad_output)
    case.grad_output = changed.bfloat16().double()
    check("flash", case, dtype, strength)
    check("sampled", case, dtype, strength)


def test_rows_that_see_no_key_and_have_no_gradient_stay_finite() -> None:
    late_keys = [cases.UND_ROW, cases.UND_ROW, cases.UND_KEY, cases.UND_ROW]
    case = make_case([[late_keys]])
    case.grad_output = torch.zeros_like(case.grad_output)
    for method in METHODS:
        for dtype in TOLERANCE:
            check(method, case, dtype)


@pytest.mark.parametrize("method", METHODS)
def test_padding_gives_zeros_and_gets_none(method: str) -> None:
    case = make_case(ROWS["packed"])
    output, _, *gradients = run(METHODS[method], case, torch.ones(num_terms(case)), torch.float32)
    inside = torch.zeros(output.shape[0], output.shape[2], dtype=torch.bool)
    for segment in case.segments:
        inside[segment.batch_index, segment.start : segment.stop] = True
    for x in (output, *gradients):
        assert (x.transpose(1, 2)[~inside] == 0).all()


@pytest.mark.parametrize(("method", "module"), [("flash", rectangle), ("sampled", sampled)])
def test_in_several_blocks(
    method: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit: Any = {"cpu": 300} if module is rectangle else 50
    monkeypatch.setattr(module, "_MAX_BLOCK_ELEMENTS", limit)
    check(method, make_case(ROWS["packed"]), torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_measuring_needs_no_gradient(method: str) -> None:
    case = make_case(ROWS["packed"])
    expected = run_reference(case, torch.ones(num_terms(case)))
    b, _, s, _ = case.query.shape
    with torch.no_grad():
        output, sums = METHODS[method](
            *case.inputs(), AttentionLayout(case.segments, s, b), case.scale
        )
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(sums, expected[1])


role_codes = st.lists(st.sampled_from(range(16)), min_size=1, max_size=14)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.lists(role_codes, max_size=3), min_size=1, max_size=3).filter(any),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3), (6, 2)]),
    head_size=st.sampled_from([8, 16, 24]),
    padding=st.integers(0, 4),
    strength=st.sampled_from([1e-6, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_any_roles_and_shapes(
    rows: list, heads: tuple[int, int], head_size: int, padding: int, strength: float, seed: int
) -> None:
    case = make_case(rows, *heads, head_size, padding, seed)
    if num_terms(case):
        check("eager", case, torch.float64, strength)
        for dtype in TOLERANCE:
            check("flash", case, dtype, strength)
            check("sampled", case, dtype, strength)


@st.composite
def ragged_samples(draw: st.DrawFn) -> list[int]:
    """A drawn image after its prompt, or an answer after its image, of any length."""
    key, row = draw(
        st.sampled_from([(cases.GEN_KEY, cases.GEN_ROW), (cases.UND_KEY, cases.UND_ROW)])
    )
    keys, gap, rows, tail = (draw(st.integers(first, last)) for first, last in RAGGED_LENGTHS)
    return [key] * keys + [cases.PLAIN] * gap + [row] * rows + [cases.PLAIN] * tail


RAGGED_LENGTHS = ((1, 120), (0, 3), (1, 120), (0, 20))


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.lists(ragged_samples(), min_size=1, max_size=2), min_size=1, max_size=2),
    heads=st.sampled_from([(2, 1), (4, 2), (4, 4)]),
    head_size=st.sampled_from([64, 80, 96, 128]),
    strength=st.sampled_from([1e-6, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_ragged_lengths_and_head_sizes_of_models(
    rows: list, heads: tuple[int, int], head_size: int, strength: float, seed: int
) -> None:
    case = make_case(rows, *heads, head_size, seed=seed)
    for dtype in TOLERANCE:
        check("flash", case, dtype, strength)
        check("sampled", case, dtype, strength)


TARGETS = LayerTargets(
    target={Task.GENERATION: np.array([0.9, 0.3, 0.2]), Task.UNDERSTANDING: np.array([0, 0.4, 1])},
    delta={Task.GENERATION: np.array([0.2, 0.3, 0]), Task.UNDERSTANDING: np.array([0.05, 1, 0.1])},
)
LAMBDAS = {Task.GENERATION: 5.0, Task.UNDERSTANDING: 40.0}


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_of_a_step(method: str) -> None:
    """Three layers, two micro-batches: every normaliser is of the step, none of a micro-batch."""
    num_layers = 3
    batches = [
        [make_case(rows, seed=10 * i + layer) for layer in range(num_layers)]
        for i, rows in enumerate([ROWS["packed"], ROWS["inactive between active"]])
    ]
    leaves = [[case.inputs() for case in layers] for layers in batches]
    by_layer: list[list[Tensor]] = [[] for _ in range(num_layers)]
    total = torch.zeros((), dtype=torch.float64)
    for layers, inputs in zip(batches, leaves, strict=True):
        for layer, (case, leaf) in enumerate(zip(layers, inputs, strict=True)):
            output, intensities = reference.attention(*leaf, case.segments, case.scale)
            by_layer[layer] += intensities
            total = total + (output * case.grad_output).sum()
    tasks = [t.task for layers in batches for s in layers[0].segments for t in s.terms]
    assert set(tasks) == set(AIA_TASKS)
    expected_loss = reference.aia_loss(by_layer, tasks, TARGETS.target, TARGETS.delta, LAMBDAS)
    (total + expected_loss).backward()

    objective = AIALoss(TARGETS, LAMBDAS, num_layers, num_active=len(tasks))
    loss = 0.0
    first = 0
    for layers, inputs in zip(batches, leaves, strict=True):
        aia = AIAContext(layers[0].segments, objective, num_heads=4)
        last = first + len(aia.term_tasks)
        b, _, s, _ = layers[0].query.shape
        layout = AttentionLayout(aia.segments, s, b)
        for layer, (case, leaf) in enumerate(zip(layers, inputs, strict=True)):
            ours = case.inputs()
            output, sums = METHODS[method](*ours, layout, case.scale)
            attached = aia.attach(output, sums, layer)
            assert torch.equal(attached, output)
            (attached * case.grad_output).sum().backward()
            for a, b_ in zip(ours, leaf, strict=True):
                torch.testing.assert_close(a.grad, b_.grad, rtol=1e-9, atol=1e-9)
            intensity = aia.intensity(layer)
            expected = torch.stack(by_layer[layer][first:last]).detach()
            torch.testing.assert_close(intensity, expected, rtol=1e-12, atol=1e-12)
            loss += aia.loss(layer).sum().item()
        first = last
    assert loss == pytest.approx(expected_loss.item(), rel=1e-12)
