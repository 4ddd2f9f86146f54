"""Mixture files and blends: what they mean, and one line for every mistake."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fake_index import fake_index
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_data import CODEBOOK_SIZE, toy_samples, write_folder

from megatron_aia.aia.roles import Task
from megatron_aia.config.data_sources import blend_pairs, check_data_sources
from megatron_aia.config.tree import DataConfig
from megatron_aia.data.mix_sources import choose, mix_sources
from megatron_aia.data.mixture import Mixture
from megatron_aia.data.mixture_file import read_mixture_file
from megatron_aia.data.mixture_plan import MixturePlan, MixtureSource
from megatron_aia.data.open import open_mixture, plan_mixture
from megatron_aia.data.phases import Phase

FILE = """
sources:
  drawing: {path: both, task: generation}
  asking: {path: both, task: understanding, limit: 5}
  chat: texts
phases:
  - {samples: 7, weights: {drawing: 2, chat: 1}}
  - {weights: {asking: 1, drawing: 3}}
"""
SEED = 5


def write(folder: Path, text: str) -> str:
    path = folder / "mixture.yaml"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data folders, and the mixture file beside them."""
    root = tmp_path_factory.mktemp("data")
    both = [*toy_samples("generation", 9), *toy_samples("understanding", 11)]
    write_folder(root / "both", both)
    write_folder(root / "texts", toy_samples("text", 4))
    write(root, FILE)
    return root


def open_file(folder: Path, seed: int = SEED, **data: object) -> Mixture:
    config = DataConfig(data_path=(str(folder / "mixture.yaml"),), **data)  # type: ignore[arg-type]
    return open_mixture(config, seed, CODEBOOK_SIZE)


def test_a_file_is_read_as_written(folder: Path) -> None:
    path = str(folder / "mixture.yaml")
    plan = read_mixture_file(path)
    assert [(s.name, s.folders, s.task, s.limit) for s in plan.sources] == [
        ("drawing", (str(folder / "both"),), Task.GENERATION, None),
        ("asking", (str(folder / "both"),), Task.UNDERSTANDING, 5),
        ("chat", (str(folder / "texts"),), None, None),
    ]
    assert plan.phases == (Phase((2, 0, 1), 7), Phase((3, 1, 0)))
    assert plan_mixture(DataConfig(data_path=(path,))) == plan
    assert plan.folders == (str(folder / "both"), str(folder / "texts"))


def test_paths_may_be_absolute_or_addresses(tmp_path: Path) -> None:
    text = "sources: {a: /data/a, b: 's3://bucket/b'}\nphases: [{weights: {a: 1, b: 1}}]"
    plan = read_mixture_file(write(tmp_path, text))
    assert plan.folders == ("/data/a", "s3://bucket/b")


def test_phases_draw_from_their_sources(folder: Path) -> None:
    mixture = open_file(folder)
    assert len(mixture.indexes) == 2, "a folder of two sources is opened once"
    names = [mixture.pools[mixture.locate(p).source].name for p in range(47)]
    assert Counter(names[:3]) == Counter(names[3:6]) == {"drawing": 2, "chat": 1}
    assert names[6] == "drawing"
    for start in range(7, 47, 4):
        assert Counter(names[start : start + 4]) == {"drawing": 3, "asking": 1}


def test_a_source_has_only_its_samples_once_an_epoch(folder: Path) -> None:
    mixture = open_file(folder)
    seen: dict[tuple[int, int], list[int]] = {}
    for position in range(400):
        a = mixture.locate(position)
        assert mixture.indexes[a.index_number].tasks[a.sample_number] == a.task
        seen.setdefault((a.source, a.epoch), []).append(a.sample_number)
    sizes, tasks = (9, 5, 4), (Task.GENERATION, Task.UNDERSTANDING, Task.TEXT)
    for (source, epoch), samples in seen.items():
        assert len(set(samples)) == len(samples) <= sizes[source]
        if (source, epoch + 1) in seen:
            assert len(samples) == sizes[source]
        index = mixture.indexes[0 if source < 2 else 1]
        assert set(index.tasks[samples]) == {tasks[source]}
    assert max(epoch for source, epoch in seen if source == 0) > 20


def test_peers_are_of_the_same_source_and_task(folder: Path) -> None:
    """Of them replacements are drawn for corrupt samples."""
    mixture = open_file(folder)
    for position in range(60):
        address = mixture.locate(position)
        peers = mixture.peers(address)
        assert address.sample_number in peers
        assert len(peers) == (9, 5, 4)[address.source]
        assert set(mixture.indexes[address.index_number].tasks[peers]) == {address.task}
    both = MixturePlan((MixtureSource("all", ("a",), limit=5),), (Phase((1,)),))
    mixed = mix_sources(both, SEED, lambda name: fake_index(name, [1, 2, 1, 2, 0, 1, 1]))
    kept = {(a.task, a.sample_number) for a in map(mixed.locate, range(5))}
    for address in map(mixed.locate, range(5)):
        assert {(address.task, n) for n in mixed.peers(address).tolist()} == {
            sample for sample in kept if sample[0] == address.task
        }


def test_a_limit_keeps_the_same_samples_for_every_seed(folder: Path) -> None:
    kept = []
    for seed in (5, 6):
        drawn = [open_file(folder, seed).locate(position) for position in range(7, 87)]
        kept.append({address.sample_number for address in drawn if address.source == 1})
    assert kept[0] == kept[1] and len(kept[0]) == 5


@given(st.integers(0, 400), st.integers(1, 400))
def test_a_smaller_limit_keeps_a_part_of_a_larger_one(first: int, second: int) -> None:
    samples = np.arange(3, 303)
    few, many = sorted((first, second))
    kept = choose(samples, few)
    assert len(kept) == min(few, 300) and (np.diff(kept) > 0).all()
    assert set(kept) <= set(choose(samples, many)) <= set(samples)


def test_a_limit_takes_from_all_over_the_folder() -> None:
    kept = choose(np.arange(100_000), 1000)
    counts, _ = np.histogram(kept, bins=10, range=(0, 100_000))
    assert counts.min() > 60


def test_blend_is_exact_and_does_not_depend_on_paths(folder: Path) -> None:
    config = DataConfig(data_path=("2", str(folder / "both"), "1", str(folder / "texts")))
    mixture = open_mixture(config, SEED, CODEBOOK_SIZE)
    for start in range(0, 60, 3):
        assert Counter(mixture.locate(start + i).source for i in range(3)) == {0: 2, 1: 1}
    assert {mixture.locate(p).task for p in range(30)} == set(Task) - {Task.MIXED}
    assert plan_mixture(config).folders == (str(folder / "both"), str(folder / "texts"))
    moved = folder.parent / "moved"
    moved.symlink_to(folder)
    other = DataConfig(data_path=("2", str(moved / "both"), "1", str(moved / "texts")))
    assert open_mixture(other, SEED, CODEBOOK_SIZE).fingerprint == mixture.fingerprint


def test_fingerprint_is_of_the_order(folder: Path) -> None:
    def of(text: str, seed: int = SEED) -> str:
        plan = read_mixture_file(write(folder, text))
        return mix_sources(
            plan, seed, lambda name: fake_index(Path(name).name, [1, 2, 1, 2])
        ).fingerprint

    base = of(FILE)
    spaced = FILE.replace("both", str(folder / "both"))
    unused = FILE.replace("phases:", "  rest: texts\nphases:")
    assert of(FILE) == of(spaced) == of(unused) == base
    changes = [
        ("drawing", "painting"),
        ("both, task: generation", "both"),
        ("limit: 5", "limit: 6"),
        ("samples: 7", "samples: 10"),
        ("drawing: 3", "drawing: 4"),
        ("{weights: {asking", "{samples: 9, weights: {asking"),
        ("path: both, task: gen", "path: texts, task: gen"),
    ]
    others = {of(FILE.replace(*change)) for change in changes} | {of(FILE, seed=6)}
    write(folder, FILE)
    assert len(others | {base}) == len(changes) + 2


def test_the_log_names_sources_and_phases(folder: Path) -> None:
    lines = open_file(folder).describe()
    both = folder / "both"
    assert f"9 generation samples of drawing ({both})" in lines
    assert f"5 of 11 understanding samples of asking ({both})" in lines
    assert "phase 1, from position 0 to 6: 2 drawing, 1 chat in every 3" in lines
    assert "phase 2, from position 7 on: 3 drawing, 1 asking in every 4" in lines
    drawn = open_file(folder).describe_drawn(11)
    assert drawn == (
        "11 samples so far: 8 drawing (72.7%, 0.89 epochs), 1 asking (9.1%, 0.20 epochs), "
        "2 chat (18.2%, 0.50 epochs)"
    )


def test_a_source_in_no_phase_is_told() -> None:
    plan = MixturePlan((MixtureSource("a", ("a",)), MixtureSource("b", ("b",))), (Phase((1, 0)),))
    mixture = mix_sources(plan, SEED, lambda name: fake_index(name, [0, 1, 2]))
    assert mixture.describe()[1] == (
        "warning: 3 samples of b (b) are left out, as no phase gives them a weight"
    )
    assert [number for number, _ in mixture.samples_in_use()] == [0]


def test_phases_shorter_than_the_run_are_refused(folder: Path) -> None:
    plan = MixturePlan((MixtureSource("a", ("a",)),), (Phase((1,), 30), Phase((2,), 10)))
    mixture = mix_sources(plan, SEED, lambda name: fake_index(name, [0, 1, 2]))
    mixture.check_length(40)
    with pytest.raises(ValueError, match="end after 40 samples, and the run draws 41; leave out"):
        mixture.check_length(41)
    open_file(folder).check_length(10**12)


MISTAKES = {
    "no file": (None, "No such file"),
    "not YAML": ("sources: [", "not YAML"),
    "a list": ("- a", "expected keys with values, as in `sources: "),
    "unknown key": (FILE + "source: 1", "unknown key source; did you mean sources?"),
    "a key twice": (FILE.replace("chat: texts", "asking: texts"), "asking is set twice"),
    "no phases": (FILE.split("phases")[0], "the key phases is missing"),
    "no sources": ("sources: {}\nphases: [{weights: {}}]", "sources must be names with folders"),
    "a number for a name": (FILE.replace("drawing: {p", "1: {p"), "sources: 1 is not a name"),
    "no path": (FILE.replace("path: both, task: gen", "task: gen"), "the key path is missing"),
    "a number for a path": (FILE.replace("path: both", "path: 3"), "path must be .*, not 3"),
    "unknown option": (FILE.replace("limit", "limits"), "unknown key limits; did you"),
    "a URL that runs": (FILE.replace("texts", "'pipe:cat x'"), "path pipe:cat x: unsupported URL"),
    "unknown task": (FILE.replace("generation", "drawn"), "task 'drawn' is none; use text, gen"),
    "limit of 0": (FILE.replace("limit: 5", "limit: 0"), "limit must be .* from 1 on, not 0"),
    "limit as text": (FILE.replace("limit: 5", "limit: 5k"), "limit must be .*, not '5k'"),
    "phases by name": (FILE.split("phases")[0] + "phases: {a: 1}", "phases must be a list"),
    "a phase that is a number": (FILE + "  - 3", "phase 2: samples is missing, and phase 3"),
    "an empty phase": (FILE.replace("- {weights: {asking: 1, drawing: 3}}", "-"), "2: expected"),
    "unknown key of a phase": (FILE.replace("samples", "sample"), "phase 1: unknown key sample;"),
    "phase of 0 samples": (FILE.replace("samples: 7", "samples: 0"), "phase 1: samples .*, not 0"),
    "phase of null": (FILE.replace("samples: 7", "samples: null"), "1: samples .*, not None"),
    "phase of half": (FILE.replace("samples: 7", "samples: 7.5"), "phase 1: samples .*, not 7.5"),
    "no weights": (FILE.replace("weights: {drawing: 2, chat: 1}", "weights: "), "1: weights must"),
    "weight 0.5": (FILE.replace("chat: 1", "chat: 0.5"), "weights: chat must .* not 0.5"),
    "weight true": (FILE.replace("chat: 1", "chat: true"), "chat must be a whole .*, not True"),
    "weight below 0": (FILE.replace("chat: 1", "chat: -1"), "chat must be a whole number, not -1"),
    "all weights 0": (FILE.replace("asking: 1, drawing: 3", "asking: 0"), "2: weights are all 0"),
    "unknown source": (FILE.replace("chat: 1", "chad: 1"), "chad is not among .* mean chat"),
    "no folder": (FILE.replace("texts", "nowhere"), "sources: chat: .*nowhere: no such folder"),
    "no such samples": (FILE.replace("chat: texts", "chat: {path: texts, task: mixed}"),
                        "sources: chat: .*texts has no mixed samples; take"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_file(name: str, folder: Path, tmp_path: Path) -> None:
    text, message = MISTAKES[name]
    for part in ("both", "texts"):
        (tmp_path / part).symlink_to(folder / part)
    path = str(tmp_path / "mixture.yaml") if text is None else write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        open_mixture(DataConfig(data_path=(path,)), SEED, CODEBOOK_SIZE)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


@settings(max_examples=30)
@given(st.text(alphabet="sourcephaweigt: {}[]-\n01a", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        try:
            read_mixture_file(write(Path(name), text))
        except ValueError as error:
            assert "\n" not in str(error)


BLENDS = {
    "odd": (("2", "a", "1"), "--data-path 2 a 1 is not pairs"),
    "a name for a weight": (("1", "a", "b", "2"), "the weight b of 2 is not a whole number"),
    "half": (("0.5", "a"), "the weight 0.5 of a is not .*; for 0.7 and 0.3 write 7 and 3"),
    "nothing": (("0", "a"), "the weight 0 of a"),
    "twice": (("1", "a", "2", "a"), "a stands there twice"),
}


@pytest.mark.parametrize("name", BLENDS)
def test_a_mistake_in_a_blend_is_told(name: str) -> None:
    blend, message = BLENDS[name]
    with pytest.raises(ValueError, match=message):
        blend_pairs(DataConfig(data_path=blend))


def test_folders_without_weights_are_no_blend() -> None:
    assert blend_pairs(DataConfig(data_path=("a", "b"))) == []
    assert blend_pairs(DataConfig(data_path=("./2", "b"))) == []


def test_a_folder_with_the_name_of_a_weight_is_told_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "2").mkdir()
    with pytest.raises(ValueError, match=r"2 is a weight and a folder; write ./2 .* 02 for the w"):
        blend_pairs(DataConfig(data_path=("2", "a")))
    assert blend_pairs(DataConfig(data_path=("02", "a"))) == [(2, "a")]


def test_contradictions_are_refused(folder: Path) -> None:
    file = str(folder / "mixture.yaml")
    cases: list[tuple[dict[str, object], str]] = [
        ({"data_path": (file, "b")}, "must stand alone"),
        ({"data_path": (file,), "task_ratio": "2:1"}, "--task-ratio 2:1 .*leave it out, give"),
        (
            {"data_path": ("1", "a"), "task_ratio": "2:1"},
            "--task-ratio 2:1 .*leave it out, its weights",
        ),
        ({"data_path": (str(folder / "no.yaml"),)}, "no.yaml is not a file"),
    ]
    for values, message in cases:
        with pytest.raises(ValueError, match=message):
            check_data_sources(DataConfig(**values))  # type: ignore[arg-type]
