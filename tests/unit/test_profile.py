from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_aia.aia.profile import load_profile
from megatron_aia.aia.roles import AIA_TASKS, Task

SMALL = """
name: small
depth: 4
source: a test
stages:
  generation:
    - {first: 0, last: 1, target: 0.4, delta: 0.2}
    - {first: 2, last: 3, target: 0.2, delta: 0.1}
  understanding:
    - {first: 0, last: 3, target: 0.3, delta: 0.05}
curve:
  generation: [0.1, 0.2, 0.3, 0.4]
  understanding: [0.5, 0.6, 0.7, 0.8]
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


# (layer, generation (delta, T), understanding (delta, T)) around every boundary of Table 2.
PAPER = [
    (0, (0.2, 0.4), (0.05, 0.1)),
    (9, (0.2, 0.4), (0.05, 0.1)),
    (10, (0.1, 0.4), (0.05, 0.15)),
    (19, (0.1, 0.4), (0.05, 0.15)),
    (20, (0.1, 0.4), (0.05, 0.3)),
    (24, (0.1, 0.4), (0.05, 0.3)),
    (25, (0.05, 0.2), (0.05, 0.3)),
    (29, (0.05, 0.2), (0.05, 0.3)),
]
RELEASED = [row if row[0] != 20 else (20, (0.1, 0.4), (0.05, 0.15)) for row in PAPER]


@pytest.mark.parametrize(
    ("name", "depth", "table"),
    [
        ("paper", 32, [*PAPER, (30, *PAPER[-1][1:]), (31, (0.05, 0.2), (0.05, 0.2))]),
        ("paper_janus_pro", 30, PAPER),
        ("released_code", 30, [*RELEASED, (21, (0.1, 0.4), (0.05, 0.3))]),
    ],
)
def test_shipped_profiles_are_the_published_tables(name: str, depth: int, table: list) -> None:
    profile = load_profile(name)
    assert (profile.name, profile.depth) == (name, depth)
    targets = profile.resolve(depth)
    for layer, *by_task in table:
        for task, expected in zip(AIA_TASKS, by_task, strict=True):
            got = (targets.delta[task][layer], targets.target[task][layer])
            assert got == expected, (layer, task)


@pytest.mark.parametrize("num_layers", [1, 2, 4, 7, 12, 30, 32, 33, 80])
def test_another_depth_maps_first_to_first_and_last_to_last(num_layers: int) -> None:
    profile = load_profile("paper")
    ours, theirs = profile.resolve(num_layers), profile.resolve(32)
    for task in AIA_TASKS:
        assert ours.target[task].shape == ours.delta[task].shape == (num_layers,)
        assert ours.target[task].dtype == np.float64
        assert ours.target[task][0] == theirs.target[task][0]
        if num_layers > 1:
            assert ours.target[task][-1] == theirs.target[task][-1]


def test_depth_mapping_rounds_the_relative_depth(small: Path) -> None:
    # Layers 0..6 of 7 stand at 0, 0.5, 1, 1.5, 2, 2.5, 3 of the profile's 0..3.
    targets = load_profile(str(small)).resolve(7, "layer")
    assert targets.target[Task.GENERATION].tolist() == [0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4]


def test_layer_targets_take_the_curve_and_the_stage_threshold(small: Path) -> None:
    profile = load_profile(str(small))
    by_layer, by_stage = profile.resolve(4, "layer"), profile.resolve(4, "stage")
    assert by_layer.target[Task.UNDERSTANDING].tolist() == [0.5, 0.6, 0.7, 0.8]
    assert by_stage.target[Task.UNDERSTANDING].tolist() == [0.3] * 4
    assert by_layer.delta[Task.GENERATION].tolist() == [0.2, 0.2, 0.1, 0.1]


def test_the_log_line_says_when_layers_are_remapped() -> None:
    profile = load_profile("paper")
    assert "mapped" not in profile.describe(32)
    assert "mapped onto 8 layers" in profile.describe(8)
    assert "\n" not in profile.describe(8)


def edited(path: list, value: object) -> str:
    """``SMALL`` with the field at ``path`` set, or removed where the value is None."""
    document = yaml.safe_load(SMALL)
    node = document
    for step in path[:-1]:
        node = node[step]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return yaml.safe_dump(document)


GEN = ["stages", "generation"]


@pytest.mark.parametrize(
    ("path", "value", "field", "remedy"),
    [
        ([*GEN, 1, "first"], 3, "stages.generation[1].first is 3", "a gap; .* layer 2"),
        ([*GEN, 1, "first"], 1, "stages.generation[1].first is 1", "an overlap; .* layer 2"),
        ([*GEN, 1, "last"], 2, "stages.generation[-1].last is 2", "must be 3"),
        ([*GEN, 1, "last"], 5, "stages.generation[-1].last is 5", "must be 3"),
        ([*GEN, 1, "last"], 1, "stages.generation[1].last is 1", "at least first = 2"),
        ([*GEN, 0, "delta"], -0.1, "stages.generation[0].delta is -0.1", "not be negative"),
        ([*GEN, 0, "target"], 1.5, "stages.generation[0].target is 1.5", "between 0 and 1"),
        ([*GEN, 0, "target"], "much", "stages.generation[0].target is 'much'", "a number"),
        ([*GEN, 0, "target"], float("nan"), "stages.generation[0].target is nan", "a number"),
        ([*GEN, 0, "target"], None, "stages.generation[0].target is missing", "a number"),
        ([*GEN, 0, "detla"], 0.1, "stages.generation[0].detla is 0.1", "unknown field"),
        ([*GEN, 0], "x", "stages.generation[0] is 'x'", "fields and values"),
        (GEN, [], "stages.generation is []", "a list"),
        (GEN, None, "stages.generation is missing", "generation and understanding"),
        (["stages", "speech"], [], "task is 'speech'", "generation and understanding"),
        (["curve", "speech"], [], "task is 'speech'", "generation and understanding"),
        (["curve", "generation"], [0.1], "curve.generation is '1 values'", "each of 4 layers"),
        (["curve", "generation", 2], -1, "curve.generation[2] is -1", "between 0 and 1"),
        (["depth"], 0, "depth is 0", "decoder layers"),
        (["depth"], 2.5, "depth is 2.5", "whole number"),
        (["depth"], None, "depth is missing", "whole number"),
        (["stages"], None, "stages is missing", "fields and values"),
        (["lambda"], 40, "lambda is 40", "use only"),
    ],
)
def test_errors_name_file_field_value_and_remedy(
    tmp_path: Path, path: list, value: object, field: str, remedy: str
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(edited(path, value))
    with pytest.raises(ValueError, match=remedy) as error:
        load_profile(str(file))
    assert str(error.value).startswith(f"{file}: {field}; ")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("stages: [")
    with pytest.raises(ValueError, match="is not a YAML file") as error:
        load_profile(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["papers", "missing.yaml"])
def test_an_unknown_name_lists_the_shipped_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} .*paper, paper_janus_pro, released_code"):
        load_profile(name)


def test_layer_targets_need_a_curve() -> None:
    with pytest.raises(ValueError, match=r"paper: curve.generation is missing.*--aia-targets"):
        load_profile("paper").resolve(32, "layer")
