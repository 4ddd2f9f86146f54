"""Intensities of checkpoints: the run's own record, Transformers' model, one number by layout."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.layouts import Layout
from support.runs import run_config, train, write_dataset
from support.spawn import spawn
from support.tiny_runs import run_tool_on
from support.tools import export_hf, run_tool

from megatron_aia.aia.roles import AIA_TASK_OF_NAME, Task
from megatron_aia.analysis.validation import read_validations
from megatron_aia.config.flags import parse_options
from megatron_aia.measurement.curves import SampleIntensity, read_curves, read_samples
from megatron_aia.measurement.hf_features import collect_hf_features
from megatron_aia.measurement.opened import open_for
from megatron_aia.measurement.options import AlignmentOptions
from megatron_aia.measurement.own_features import collect_own_features

FAMILIES = ["emu3", "janus_pro"]
FORKED = "unifork"
"""Transformers has no such model."""
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "TP 2 + SP": (2, ["--tensor-model-parallel-size=2", "--sequence-parallel"]),
    "PP 2": (2, ["--pipeline-model-parallel-size=2"]),
    "PP 2 x VPP 2": (
        2,
        ["--pipeline-model-parallel-size=2", "--num-layers-per-virtual-pipeline-stage=1"],
    ),
    "CP 2": (2, ["--context-parallel-size=2"]),
    "DP 2": (2, []),
    "TP 2 x PP 2": (4, ["--tensor-model-parallel-size=2", "--pipeline-model-parallel-size=2"]),
}
EXACT = 1e-5


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A step of training, then a validation on each generation and understanding sample once."""
    root = tmp_path_factory.mktemp("runs")
    for family in [*FAMILIES, FORKED]:
        data = write_dataset(root / f"{family}_data", family)
        config = run_config(data, Layout(family=family), 1, save=str(root / family))
        mixed = replace(
            config.data, valid_data_path=(str(data),), task_ratio="1:1", global_batch_size=16
        )
        training = replace(config.training, eval_interval=1, eval_iters=1)
        spawn(train, 1, replace(config, data=mixed, training=training))
    return {family: root / family for family in [*FAMILIES, FORKED]}


def data_of(run: Path) -> Path:
    return run.parent / f"{run.name}_data"


def measure(world_size: int, run: Path, output: Path, *flags: object) -> Any:
    arguments = ("--load", run, "--data-path", data_of(run), "--output", output, *flags)
    return run_tool_on(world_size, "measure_intensity", *arguments)


@pytest.fixture(scope="module")
def measured(
    runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[SampleIntensity]]:
    root = tmp_path_factory.mktemp("measured")
    found = {}
    for family, run in runs.items():
        code, out, err = measure(1, run, root / family)
        assert code == 0, err
        assert "generation: 8 of 8 samples measured" in out
        assert "understanding: 8 of 8 samples measured" in out
        found[family] = read_samples(root / family / "intensity.jsonl")
        curves = {curve.task: curve.mean for curve in read_curves(root / family)}
        (record,) = read_validations(run)
        for task in AIA_TASK_OF_NAME.values():
            np.testing.assert_allclose(curves[task], record.intensity[task], rtol=EXACT)
    return found


def assert_same(found: list[SampleIntensity], expected: list[SampleIntensity]) -> None:
    by_name = {(sample.task, sample.sample): sample for sample in found}
    assert len(by_name) == len(expected)
    for sample in expected:
        other = by_name[sample.task, sample.sample]
        assert other.intensity == pytest.approx(sample.intensity, rel=EXACT)
        counts = ("queries", "keys", "tokens", "images")
        assert [getattr(other, n) for n in counts] == [getattr(sample, n) for n in counts]


@pytest.mark.parametrize(
    ("family", "name"),
    [*product(FAMILIES, LAYOUTS), (FORKED, "TP 2 + SP")],
)
def test_equal_in_every_layout(
    runs: dict[str, Path],
    measured: dict[str, list[SampleIntensity]],
    name: str,
    family: str,
    tmp_path: Path,
) -> None:
    world_size, flags = LAYOUTS[name]
    code, _, err = measure(world_size, runs[family], tmp_path / "out", *flags)
    assert code == 0, err
    assert_same(read_samples(tmp_path / "out" / "intensity.jsonl"), measured[family])


@pytest.fixture(scope="module")
def exported(
    runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[object]]:
    """Flags that name each run's model in Transformers."""
    root = tmp_path_factory.mktemp("exported")
    for family, layout in (("emu3", "original"), ("janus_pro", "transformers")):
        code, _, err = spawn(export_hf, 1, runs[family], root / family, layout)
        assert code == 0, err
    return {
        family: [
            *("--hf-path", root / family, "--data-path", data_of(run)),
            *("--tokenizer", data_of(run) / "tokenizer.model"),
        ]
        for family, run in runs.items()
        if family != FORKED
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_the_exported_model_in_transformers(
    measured: dict[str, list[SampleIntensity]],
    exported: dict[str, list[object]],
    family: str,
    tmp_path: Path,
) -> None:
    output = ("--output", tmp_path / "out")
    code, _, err = run_tool("measure_intensity", *exported[family], *output)
    assert code == 0, err
    assert_same(read_samples(tmp_path / "out" / "intensity.jsonl"), measured[family])


def features_of(flags: list[object], world_size: int) -> dict[Task, np.ndarray]:
    """Return the features of all samples, ``[samples, 2, layers, width]``."""
    words = [str(flag) for flag in flags]
    options = parse_options(AlignmentOptions, [*words, "--output", "none"])
    opened = open_for(options, world_size)
    samples = (opened.index, opened.chosen)
    if opened.own is not None:
        found = collect_own_features(opened.own, *samples)
    else:
        found = collect_hf_features(opened.hf, *samples)
    return {part.task: np.array([x.numpy() for x in part.samples]) for part in found}


@pytest.fixture(scope="module")
def hf_features(exported: dict[str, list[object]]) -> dict[str, dict[Task, np.ndarray]]:
    return {family: features_of(flags, 1) for family, flags in exported.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_features_are_those_of_transformers_in_every_layout(
    runs: dict[str, Path],
    hf_features: dict[str, dict[Task, np.ndarray]],
    name: str,
    family: str,
) -> None:
    world_size, flags = LAYOUTS[name]
    words = ["--load", runs[family], "--data-path", data_of(runs[family]), *flags]
    found = spawn(features_of, world_size, words, world_size)
    for task, expected in hf_features[family].items():
        assert expected.shape[:2] == (8, 2)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[task], expected, atol=EXACT * scale)
        assert expected.std(axis=0).mean() > 0.01 * scale, "all samples alike would prove little"


def test_features_of_a_model_that_forks(runs: dict[str, Path]) -> None:
    words = ["--load", runs[FORKED], "--data-path", data_of(runs[FORKED])]
    expected = spawn(features_of, 1, words, 1)
    world_size, flags = LAYOUTS["TP 2 x PP 2"]
    found = spawn(features_of, world_size, [*words, *flags], world_size)
    for task, features in expected.items():
        assert features.shape[:3] == (8, 2, 4)
        np.testing.assert_allclose(found[task], features, atol=EXACT * np.abs(features).max())


def test_alignment_by_the_tool(
    runs: dict[str, Path], exported: dict[str, list[object]], tmp_path: Path
) -> None:
    settings = ("--neighbours", 2, "--clamp", 0.9)
    own = ("--load", runs["emu3"], "--data-path", data_of(runs["emu3"]))
    documents = []
    for number, model in enumerate((own, exported["emu3"])):
        output = tmp_path / str(number)
        code, out, err = run_tool_on(1, "measure_alignment", *model, *settings, "--output", output)
        assert code == 0, err
        assert "understanding: 8 of 8 samples measured" in out
        assert (output / "alignment.png").exists()
        documents.append(json.loads((output / "alignment.json").read_text()))
    for task in ("generation", "understanding"):
        first, second = (document["tasks"][task] for document in documents)
        assert first["alignment"] == pytest.approx(second["alignment"])
        assert first["chance"] == pytest.approx(2 / 7)
    stated = ("neighbours", "clamp", "text_layer", "normalisation")
    assert [documents[0][name] for name in stated] == [2, 0.9, "last", "unit length"]
    same = run_tool_on(
        *(1, "measure_alignment", *own, "--neighbours", 2, "--text-layer", "same"),
        *("--output", tmp_path / "same"),
    )
    assert same[0] == 0
    by_layer = json.loads((tmp_path / "same" / "alignment.json").read_text())
    assert by_layer["tasks"] != documents[0]["tasks"]
    for flags, said in (
        (("--output", tmp_path / "0"), "holds a measurement; give another folder"),
        (("--output", tmp_path / "x", "--neighbours", 8), "--neighbours 8: 8 samples of"),
    ):
        code, _, err = run_tool_on(1, "measure_alignment", *own, *flags)
        assert code == 2
        assert said in err


def test_samples_left_out_on_one_replica_are_counted(
    runs: dict[str, Path], measured: dict[str, list[SampleIntensity]], tmp_path: Path
) -> None:
    lengths = [s.tokens for s in measured["emu3"] if s.task == "generation"]
    most = sorted(lengths)[4]
    flags = ("--task", "generation", "--max-length", most, "--name", "mine")
    code, out, err = measure(2, runs["emu3"], tmp_path / "out", *flags)
    assert code == 0, err
    kept = [s for s in measured["emu3"] if s.task == "generation" and s.tokens <= most]
    longer = 8 - len(kept)
    assert f"{len(kept)} of 8 samples measured; {longer} longer than {most} tokens" in out
    found = read_samples(tmp_path / "out" / "intensity.jsonl")
    assert_same(found, kept)
    assert {sample.model for sample in found} == {"mine"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tensor-model-parallel-size", 3), "--tensor-model-parallel-size 3 does not divide"),
        (("--pipeline-model-parallel-size", 2), "does not divide the number of processes, 1"),
        (("--max-length", 3), "generation: 0 of 8 samples: 8 longer than 3 tokens"),
        (("--tokenizer", "none.model"), "none.model"),
        (("--dtype", "fp16"), "--dtype fp16"),
    ],
)
def test_wrong_flags_are_one_line(
    runs: dict[str, Path], flags: tuple[object, ...], said: str, tmp_path: Path
) -> None:
    code, _, err = measure(1, runs["emu3"], tmp_path / "out", *flags)
    assert code == 2
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert said in line
    assert not (tmp_path / "out").exists()
