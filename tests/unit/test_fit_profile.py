"""Stages fitted to curves: the optimum, the golden case, and the profile that is written."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from support.intensity_files import write_samples
from support.tools import run_tool

from megatron_aia.aia.profile import load_profile
from megatron_aia.aia.roles import Task
from megatron_aia.measurement.stages import StageFit, best_fit, fit_stages, stage_score

GENERATION = np.repeat([0.4, 0.2], [25, 7])
UNDERSTANDING = np.repeat([0.1, 0.15, 0.3, 0.2], [10, 10, 11, 1])


def noisy_paper(seed: int = 20251126, noise: float = 0.01) -> np.ndarray:
    """Table 2 for Emu3 with noise, rounded to 4 decimals; ``[2, 32]``."""
    added = noise * np.random.default_rng(seed).standard_normal((2, 32))
    return np.round(np.clip(np.stack([GENERATION, UNDERSTANDING]) + added, 0, 1), 4)


def spread(mean: np.ndarray, std: float, count: int = 101) -> np.ndarray:
    """Samples of exactly this mean and standard deviation, ``[count, layers]``."""
    offsets = np.linspace(-1, 1, count)
    return mean + std * (offsets / offsets.std(ddof=1))[:, None]


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Path, Path]:
    generation, understanding = noisy_paper()
    return (
        write_samples(tmp_path / "generation.jsonl", "generation", spread(generation, 0.08)),
        write_samples(tmp_path / "understanding.jsonl", "understanding", spread(understanding, 0)),
    )


def penalty_of(values: np.ndarray, level: float, penalty: str) -> float:
    sizes = np.abs(values - level)
    if penalty == "l2":
        return float((sizes**2).sum())
    return float(np.where(sizes < 0.05, sizes**2, 0.1 * sizes - 0.0025).sum())


def brute_force(curves: np.ndarray, stages: int, penalty: str) -> float:
    """The least cost over all partitions; levels by a fine search for ``huber``."""
    layers = curves.shape[1]
    best = np.inf
    for inner in itertools.combinations(range(1, layers), stages - 1):
        cost = 0.0
        for first, stop in itertools.pairwise((0, *inner, layers)):
            for part in curves[:, first:stop]:
                levels = [part.mean()] if penalty == "l2" else np.linspace(0, 1, 2001)
                cost += min(penalty_of(part, level, penalty) for level in levels)
        best = min(best, cost)
    return best


@pytest.mark.parametrize("penalty", ["l2", "huber"])
@pytest.mark.parametrize("layers", [2, 5, 7])
@pytest.mark.parametrize("tasks", [1, 2])
def test_the_fit_is_the_best_of_all_partitions(penalty: str, layers: int, tasks: int) -> None:
    curves = np.random.default_rng(layers).random((tasks, layers))
    tolerance = 1e-12 if penalty == "l2" else 1e-4  # of the search for a level
    most = layers if penalty == "l2" else 3
    for fit in fit_stages(curves, min(most, layers), penalty):
        least = brute_force(curves, fit.num_stages, penalty)
        assert fit.cost == pytest.approx(least, abs=tolerance)
        assert fit.cost <= least + 1e-12


def test_by_hand() -> None:
    one, two, three = fit_stages(np.array([[0.4, 0.4, 0.4, 0.1, 0.1, 0.3]]), 3)
    assert (one.starts, two.starts, three.starts) == ((0,), (0, 3), (0, 3, 5))
    assert [fit.cost for fit in (one, two, three)] == pytest.approx([0.325 / 3, 0.08 / 3, 0])
    assert three.levels.tolist() == [pytest.approx([0.4, 0.1, 0.3])]


def test_golden_scores_and_levels() -> None:
    fits = fit_stages(noisy_paper(), 6)
    scores = [stage_score(fit, 64) for fit in fits]
    expected = [-306.63, -368.58, -470.45, -502.84, -548.17, -541.41]
    assert scores == pytest.approx(expected, abs=0.005)
    chosen = best_fit(fits, 64)
    assert chosen.starts == (0, 10, 20, 25, 31)
    assert chosen.cost == pytest.approx(0.004603, abs=5e-7)
    assert chosen.levels[0] == pytest.approx([0.3989, 0.3989, 0.4022, 0.2039, 0.2108], abs=6e-5)
    assert chosen.levels[1] == pytest.approx([0.1014, 0.1494, 0.2960, 0.3008, 0.2123], abs=6e-5)


def test_the_papers_stages_are_recovered_from_noise() -> None:
    draws = [fit_stages(noisy_paper(seed), 8) for seed in range(40)]
    assert sum(fits[4].starts == (0, 10, 20, 25, 31) for fits in draws) >= 38
    assert sum(best_fit(fits, 64).num_stages == 5 for fits in draws) >= 30


def test_huber_passes_over_a_wild_layer() -> None:
    curve = noisy_paper()[:1].copy()
    curve[0, 7] = 0.95
    assert fit_stages(curve, 3)[2].starts == (0, 7, 8)
    assert fit_stages(curve, 2, "huber")[1].starts == (0, 25)


def test_equal_scores_take_fewer_stages() -> None:
    flat = [StageFit((0,), np.zeros((1, 1)), 0.0), StageFit((0, 1), np.zeros((1, 2)), 0.0)]
    assert best_fit(flat, 1).num_stages == 1


def test_a_profile_of_two_teachers(measured: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "mine.yaml"
    code, out, err = run_tool("fit_profile", "--intensity", *measured, "--output", output)
    assert (code, err) == (0, ""), err
    profile = load_profile(str(output))
    assert (profile.name, profile.depth) == ("mine", 32)
    assert "teacher, 101 samples" in profile.source
    generation = profile.stages[Task.GENERATION]
    assert [(s.first, s.last) for s in generation] == [
        (0, 9), (10, 19), (20, 24), (25, 30), (31, 31),
    ]  # fmt: skip
    assert [stage.target for stage in generation] == [0.4, 0.4, 0.4, 0.2, 0.21]
    assert [stage.delta for stage in generation] == [0.1] * 5, "the spread of samples, 0.08"
    understanding = profile.stages[Task.UNDERSTANDING]
    assert [stage.target for stage in understanding] == [0.1, 0.15, 0.3, 0.3, 0.21]
    assert [stage.delta for stage in understanding] == [0.05] * 5
    assert profile.resolve(32, "layer").target[Task.GENERATION] == pytest.approx(
        noisy_paper()[0], abs=1e-6
    )
    assert "5: 0.004603 -548.17" in out
    assert "5: 0.004603 -548.17" in output.read_text(), "the file says how it was made"
    assert output.with_suffix(".png").stat().st_size > 10_000


def test_each_flag_changes_the_profile(measured: tuple[Path, Path], tmp_path: Path) -> None:
    def fit(*flags: object) -> dict[Task, list[tuple[int, float, float]]]:
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        arguments = ("--intensity", *measured, "--output", output, "--no-figure", *flags)
        code, _, err = run_tool("fit_profile", *arguments)
        assert code == 0, err
        assert not output.with_suffix(".png").exists()
        profile = load_profile(str(output))
        return {
            task: [(s.first, s.target, s.delta) for s in stages]
            for task, stages in profile.stages.items()
        }

    apart = fit("--no-joint")
    assert [first for first, _, _ in apart[Task.GENERATION]] == [0, 25]
    assert [first for first, _, _ in apart[Task.UNDERSTANDING]] == [0, 10, 20, 31]
    assert [first for first, _, _ in fit("--stages", 3)[Task.GENERATION]] == [0, 20, 25]
    coarse = fit("--round", 0.05)[Task.GENERATION]
    assert [target for _, target, _ in coarse] == [0.4, 0.4, 0.4, 0.2, 0.2]
    asked = fit("--delta", 0.2, 0.1, 0.1, 0.05, 0)[Task.UNDERSTANDING]
    assert [delta for _, _, delta in asked] == [0.2, 0.1, 0.1, 0.05, 0]
    assert {delta for _, _, delta in fit("--delta", 0.3)[Task.GENERATION]} == {0.3}
    huber = fit("--stages", 1, "--penalty", "huber")
    assert huber[Task.GENERATION][0][1] > fit("--stages", 1)[Task.GENERATION][0][1] + 0.02


def test_one_task_takes_the_other_from_a_profile(
    measured: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "half.yaml"
    flags = ("--intensity", measured[0], "--base-profile", "paper", "--name", "half of it")
    assert run_tool("fit_profile", *flags, "--output", output)[0] == 0
    profile, paper = load_profile(str(output)), load_profile("paper")
    assert profile.name == "half of it"
    assert "understanding from profile paper" in profile.source
    assert set(profile.curve) == {Task.GENERATION}
    ours, theirs = profile.resolve(32), paper.resolve(32)
    for found, expected in ((ours.target, theirs.target), (ours.delta, theirs.delta)):
        assert found[Task.UNDERSTANDING].tolist() == expected[Task.UNDERSTANDING].tolist()


def test_another_depth_and_layers_without_attention(tmp_path: Path) -> None:
    deep = np.repeat([0.4, 0.2], [6, 2]).astype(float)
    deep[[0, 6]] = np.nan
    write_samples(tmp_path / "generation.jsonl", "generation", spread(deep, 0.02))
    (tmp_path / "curve.csv").write_text(
        "layer,understanding\n" + "".join(f"{i},{0.1 + 0.1 * (i > 1)}\n" for i in range(4))
    )
    inputs = (tmp_path / "generation.jsonl", tmp_path / "curve.csv")
    output = tmp_path / "mixed.yaml"
    flags = ("--intensity", *inputs, "--output", output, "--no-joint", "--stages", 2)
    code, _, err = run_tool("fit_profile", *flags)
    assert code == 0, err
    profile = load_profile(str(output))
    assert profile.depth == 8
    assert "2 layers without attention interpolated" in profile.source
    assert "4 layers interpolated to 8 by relative depth" in profile.source
    generation = [(s.first, s.last, s.target) for s in profile.stages[Task.GENERATION]]
    assert generation == [(0, 6, 0.4), (7, 7, 0.2)]
    assert profile.curve[Task.UNDERSTANDING].tolist() == pytest.approx(
        np.interp(np.linspace(0, 3, 8), range(4), [0.1, 0.1, 0.2, 0.2]), abs=1e-6
    )


def test_what_is_uncertain_is_said(tmp_path: Path) -> None:
    ramp = np.linspace(0.9, 0.1, 32)
    for task in ("generation", "understanding"):
        write_samples(tmp_path / f"{task}.jsonl", task, spread(ramp, 0.05, count=5))
    inputs = [tmp_path / f"{task}.jsonl" for task in ("generation", "understanding")]
    code, out, _ = run_tool("fit_profile", "--intensity", *inputs, "--output", tmp_path / "a.yaml")
    assert code == 0
    assert "has 5 samples only" in out
    assert "standard error of generation is 0.022" in out
    assert "ran into 8 stages" in out


BAD = [
    (("--stages", "33"), "33 stages: give 1 to 32"),
    (("--stages", "0"), "--stages 0: give auto"),
    (("--stages", "few"), "--stages few: give auto"),
    (("--delta", "0.1", "0.2"), "--delta has 2 values for 5 stages"),
    (("--delta", "-1"), "a threshold is 0 or more"),
    (("--round", "0"), "--round"),
    (("--base-profile", "paper"), "both tasks are measured"),
    (("--base-profile", "nowhere"), "profile nowhere does not exist"),
    (("--output", "profile.txt"), "end the name in .yaml"),
]


@pytest.mark.parametrize(("flags", "said"), BAD, ids=[said for _, said in BAD])
def test_wrong_flags_are_one_line(
    measured: tuple[Path, Path], tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    output = () if "--output" in flags else ("--output", tmp_path / "mine.yaml")
    code, _, err = run_tool("fit_profile", "--intensity", *measured, *output, *flags)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "mine.yaml").exists()


def test_a_profile_is_not_overwritten(measured: tuple[Path, Path], tmp_path: Path) -> None:
    flags = ("--intensity", *measured, "--output", tmp_path / "mine.yaml")
    for name in ("mine.yaml", "mine.png"):
        (tmp_path / name).write_text("precious")
        code, _, err = run_tool("fit_profile", *flags)
        assert (code, "is there" in err) == (2, True)
        assert (tmp_path / name).read_text() == "precious"
        (tmp_path / name).unlink()
        assert not list(tmp_path.glob("mine.*"))


WRONG_FILES = [
    ("a.jsonl", "", "holds no sample"),
    ("a.jsonl", "{}\n", "line 1"),
    ("a.jsonl", '{"task": 3}\n', "line 1"),
    ("a.jsonl", "[]\n", "line 1"),
    ("a.csv", "layer,drawing\n0,1\n", "has columns layer, drawing"),
    ("a.csv", "layer,generation\n", "0 rows"),
    ("a.csv", "layer,generation\n1,0.5\n", "must count 0, 1, 2"),
    ("a.csv", "layer,generation\n0,nan\n", "line 2: generation is 'nan'"),
    ("a.csv", "layer,generation\n0,much\n", "line 2: generation is 'much'"),
    ("a.csv", "layer,generation\n0,1.5\n", "intensity of layer 0 is 1.5"),
    ("a.csv", "layer,generation\n0,\n", "holds no measured layer"),
    ("a.csv", "layer,generation\n0,0.5\n1,0.4\n", "understanding is missing"),
]


@pytest.mark.parametrize(("name", "text", "said"), WRONG_FILES, ids=[w[2] for w in WRONG_FILES])
def test_wrong_files_are_one_line(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    flags = ("--intensity", tmp_path / name, "--output", tmp_path / "out.yaml")
    code, _, err = run_tool("fit_profile", *flags)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config_hash": "def"}, "is of model teacher (def), the first line of teacher (abc)"),
        ({"intensity": [0.1, float("nan")]}, "intensity of layer 1 is nan"),
        ({"intensity": [0.1, None]}, "has other measured layers than the first line"),
        ({"intensity": [0.1]}, "has other measured layers than the first line"),
        ({"task": "drawing"}, "task is 'drawing'; use generation or understanding"),
    ],
)
def test_a_wrong_line_is_named(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    path = write_samples(tmp_path / "a.jsonl", "generation", np.full((1, 2), 0.5))
    good = path.read_text()
    path.write_text(good + json.dumps({**json.loads(good), **changes}))
    flags = ("--intensity", path, "--output", tmp_path / "out.yaml")
    code, _, err = run_tool("fit_profile", *flags)
    assert code == 2
    assert f"a.jsonl, line 2: {said}" in err


def test_a_task_twice_is_refused(measured: tuple[Path, Path], tmp_path: Path) -> None:
    flags = ("--intensity", measured[0], measured[0], "--output", tmp_path / "out.yaml")
    code, _, err = run_tool("fit_profile", *flags)
    assert code == 2
    assert "generation is in" in err
