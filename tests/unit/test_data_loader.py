from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_data import CODEBOOK_SIZE, PAD, toy_encoder, toy_sample, toy_samples, write_folder

from megatron_aia.config.tree import Config
from megatron_aia.data.batch import PADDING_SEGMENT, MicroBatch
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.open import build_step_loader
from megatron_aia.data.targets import NEXT_TOKEN

SEQ_LENGTH = 48
GBS = 12
LAYOUTS = [
    {"micro_batch_size": mbs, "data_size": dp, "packing": packing, **more}
    for packing in (False, True)
    for mbs, dp, more in (
        (1, 1, {}),
        (2, 1, {}),
        (1, 3, {}),
        (2, 3, {"micro_batch_multiple": 2}),
        (4, 2, {}),
        (1, 8, {}),
    )
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    root = tmp_path_factory.mktemp("data")
    first = [*toy_samples("generation", 17), *toy_samples("understanding", 19)]
    second = [*toy_samples("text", 6), *toy_samples("generation", 4, "more")]
    return str(write_folder(root / "a", first)), str(write_folder(root / "b", second))


def batches(folders: tuple[str, ...], rank: int = 0, **changes: Any) -> StepLoader:
    layout = {"data_size": 1, "micro_batch_multiple": 1}
    layout |= {name: changes.pop(name) for name in list(layout) if name in changes}
    config = Config()
    config.data.data_path = folders
    config.data.seq_length = SEQ_LENGTH
    config.data.global_batch_size = GBS
    config.data.cfg_drop_prob = 0.3
    for name, value in changes.items():
        assert hasattr(config.data, name)
        setattr(config.data, name, value)
    config.model.codebook_size = CODEBOOK_SIZE
    return build_step_loader(config, toy_encoder, data_rank=rank, **layout)


def samples_of(micro_batches: list[MicroBatch]) -> Counter:
    """Count samples by everything a layout must not change."""
    found: Counter = Counter()
    for batch in micro_batches:
        entries = [column.tolist() for column in vars(batch.targets[NEXT_TOKEN]).values()]
        for number, segment in enumerate(batch.segments):
            at = (segment.batch_index, slice(segment.start, segment.stop))
            terms = tuple(
                (t.task, tuple(t.queries - segment.start), tuple(t.keys - segment.start))
                for t in segment.terms
            )
            first = segment.batch_index * batch.tokens.shape[1] + segment.start
            labels = tuple(
                (position - first, value, weight, task)
                for position, value, weight, task, sample in zip(*entries, strict=True)
                if sample == number
            )
            tokens = tuple(batch.tokens[at].tolist())
            found[(segment.position, tokens, labels, terms)] += 1
    return found


def step_of_all_ranks(
    folders: tuple[str, ...], position: int, **layout: Any
) -> list[list[MicroBatch]]:
    size = layout.get("data_size", 1)
    return [batches(folders, rank, **layout).step(position) for rank in range(size)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_step_has_the_same_samples_in_every_layout(
    folders: tuple[str, ...], layout: dict[str, Any]
) -> None:
    for position in (0, 7 * GBS, 5):
        wanted = samples_of(batches(folders, packing=False).step(position))
        ranks = step_of_all_ranks(folders, position, **layout)
        assert sum((samples_of(rank) for rank in ranks), Counter()) == wanted
        assert sorted(sample[0] for sample in wanted) == list(range(position, position + GBS))

        assert len({len(rank) for rank in ranks}) == 1
        assert len(ranks[0]) % layout.get("micro_batch_multiple", 1) == 0
        flat = [batch for rank in ranks for batch in rank]
        assert {b.tokens.shape for b in flat} == {(layout["micro_batch_size"], SEQ_LENGTH)}
        if sum(len(b.tokens) for b in flat) <= GBS:
            assert all(batch.segments for batch in flat)
        assert all(any(batch.segments for batch in rank) for rank in ranks)


def test_weights_and_tokens_add_up_in_every_layout(folders: tuple[str, ...]) -> None:
    sums = set()
    for layout in LAYOUTS:
        flat = [b for rank in step_of_all_ranks(folders, 24, **layout) for b in rank]
        sums.add(
            (
                sum(int(b.tokens[b.segment_ids != PADDING_SEGMENT].sum()) for b in flat),
                sum(float(b.targets[NEXT_TOKEN].weights.sum()) for b in flat),
                sum(len(b.tasks) for b in flat),
                sum(b.num_tokens for b in flat),
            )
        )
        assert all((b.tokens[b.segment_ids == PADDING_SEGMENT] == PAD).all() for b in flat)
    assert len(sums) == 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_variable_rows_hold_the_same_samples(
    folders: tuple[str, ...], layout: dict[str, Any]
) -> None:
    ranks, fixed = [], 0
    for rank in range(layout["data_size"]):
        loader = batches(folders, rank, **layout)
        fixed += sum(b.tokens.numel() for b in loader.step(24))
        ranks.append(replace(loader, length_multiple=4).step(24))
    assert sum(map(samples_of, ranks), Counter()) == samples_of(batches(folders).step(24))
    assert len({len(rank) for rank in ranks}) == 1
    flat = [batch for rank in ranks for batch in rank]
    assert sum(batch.tokens.numel() for batch in flat) <= fixed
    for batch in flat:
        sequences, length = batch.tokens.shape
        assert sequences == layout["micro_batch_size"] and length % 4 == 0
    # A sample that lost its prompt leaves what was kept free for it.
    without_drop = [
        replace(batches(folders, rank, **layout, cfg_drop_prob=0.0), length_multiple=4).step(24)
        for rank in range(layout["data_size"])
    ]
    for batch in (batch for rank in without_drop for batch in rank):
        needed = max((segment.stop for segment in batch.segments), default=0)
        assert 0 <= batch.tokens.shape[1] - needed < 4 or batch.tokens.shape[1] == 4


def test_the_log_shows_what_variable_rows_save(folders: tuple[str, ...]) -> None:
    def padding(loader: StepLoader) -> float:
        return float(loader.describe()[-1].split("% of")[0].split()[-1])

    for layout in ({"micro_batch_size": 2}, {"data_size": 3, "packing": True}):
        fixed = batches(folders, packing=layout.pop("packing", False), **layout)
        variable = replace(fixed, length_multiple=4)
        assert padding(variable) < padding(fixed)
        assert f"sequences of at most {SEQ_LENGTH} tokens" in variable.describe()[-1]
        found = total = 0
        for position in range(0, 4 * GBS, GBS):
            for rank in range(fixed.data_parallel_size):
                for batch in replace(variable, data_parallel_rank=rank, cfg_drop_prob=0.0).step(
                    position
                ):
                    found += batch.num_tokens
                    total += batch.tokens.numel()
        assert padding(variable) == pytest.approx(100 * (1 - found / total), abs=0.051)


def test_a_run_goes_on_at_any_position_with_any_layout(folders: tuple[str, ...]) -> None:
    """Steps from a fresh loader are those of the loader that never stopped."""
    whole = batches(folders)
    ahead = [samples_of(whole.step(step * GBS)) for step in range(8)]
    for step in (7, 2, 5):
        ranks = step_of_all_ranks(folders, step * GBS, data_size=3, packing=False)
        assert sum(map(samples_of, ranks), Counter()) == ahead[step]


def test_other_batch_size_same_order(folders: tuple[str, ...]) -> None:
    small = batches(folders, global_batch_size=6)
    halves = samples_of(small.step(24)) + samples_of(small.step(30))
    assert halves == samples_of(batches(folders).step(24))


def test_each_sample_once_an_epoch(folders: tuple[str, ...]) -> None:
    """Both tasks have the same share, so 21 periods are one epoch of the 21 generation samples."""
    loader = batches(folders, global_batch_size=6, cfg_drop_prob=0.0)
    seen: Counter = Counter()
    for position in range(0, 42, 6):
        for batch in loader.step(position):
            for segment in batch.segments:
                sequence = batch.tokens[segment.batch_index, segment.start : segment.stop]
                seen[tuple(sequence.tolist())] += 1
    index, more = loader.mixture.indexes
    generation = [index.read(i, CODEBOOK_SIZE) for i in range(17)]
    generation += [more.read(i, CODEBOOK_SIZE) for i in range(6, 10)]
    for raw in generation:
        assert seen[tuple(toy_encoder(raw, False).tokens.tolist())] == 1


def test_dropped_prompts_have_no_term(folders: tuple[str, ...]) -> None:
    loader = batches(folders)
    dropped = [p for p in range(GBS) if loader.mixture.drops_prompt(p, 0.3)]
    without = [s for b in loader.step(0) for s in b.segments if not s.terms]
    assert len(without) == len(dropped) > 0


def test_fingerprint_is_of_the_meaning_not_of_the_layout(folders: tuple[str, ...]) -> None:
    base = batches(folders).fingerprint
    same = [{"packing": False}, {"micro_batch_size": 2}, {"global_batch_size": 6}]
    same += [{"data_size": 3}, {"micro_batch_multiple": 2}]
    assert {batches(folders, **change).fingerprint for change in same} == {base}
    other = [{"task_ratio": "2:1"}, {"seq_length": 64}, {"cfg_drop_prob": 0.1}]
    other += [{"overlong_samples": "truncate"}]
    changed = {batches(folders, **change).fingerprint for change in other}
    changed |= {batches(folders[::-1]).fingerprint, batches(folders[:1]).fingerprint}
    assert len(changed | {base}) == 7


def test_check_names_the_longest_sample(folders: tuple[str, ...]) -> None:
    batches(folders).check()
    with pytest.raises(ValueError) as caught:
        batches(folders, seq_length=20).check()
    message = str(caught.value)
    lengths = [
        len(toy_encoder(index.read(i, CODEBOOK_SIZE), False))
        for index in batches(folders).mixture.indexes
        for i in range(len(index))
        if index.tasks[i]
    ]
    for words in (
        f"{sum(n > 20 for n in lengths)} samples are longer than a sequence of 20 tokens",
        "part-0000",
        f"has {max(lengths)}:",
        f"--seq-length {max(lengths)}",
        "--overlong-samples truncate",
    ):
        assert words in message, message
    with pytest.raises(ValueError, match="does not fit a sequence of 20"):
        batches(folders, seq_length=20).step(0)


def test_overlong_samples_are_cut_or_named(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        [
            toy_sample("g", "generation", "p", "<image>"),
            toy_sample("u", "understanding", "<image>q", "answer " * 9),
        ],
    )
    cutting = batches((str(folder),), seq_length=20, overlong_samples="truncate", cfg_drop_prob=0.0)
    cutting.check()
    for packing in (False, True):
        loader = batches(
            (str(folder),),
            seq_length=20,
            overlong_samples="truncate",
            cfg_drop_prob=0.0,
            packing=packing,
            global_batch_size=2,
        )
        sizes = [s.stop - s.start for b in loader.step(0) for s in b.segments]
        assert sorted(sizes) == [9, 20]
    with pytest.raises(ValueError, match=r"part-00000\.tar/u has 72 tokens.*--seq-length to 10"):
        batches((str(folder),), seq_length=9, overlong_samples="truncate").check()


def test_describe_tells_samples_mixture_and_padding(folders: tuple[str, ...]) -> None:
    text = "\n".join(batches(folders, packing=True).describe())
    assert "21 generation samples" in text and "19 understanding samples" in text
    assert "warning: 6 text samples are left out" in text
    assert "the first 48 samples are 24:24:0:0" in text
    assert "with packing on" in text and "padding" in text
    shares = [
        float(batches(folders, packing=packing).describe()[-1].split("% of")[0].split()[-1])
        for packing in (True, False)
    ]
    assert 0 <= shares[0] < shares[1] < 100


def test_missing_data_path_is_told() -> None:
    with pytest.raises(ValueError, match=r"--data-path.*tools/build_shards\.py"):
        batches(())


@pytest.mark.parametrize(
    ("noted", "words"),
    [
        ('{"codebook_size": 101}', "codebook of 101, the model's has 100"),
        ("{}", "no codebook_size"),
    ],
)
def test_data_of_another_codebook_is_refused(tmp_path: Path, noted: str, words: str) -> None:
    folder = write_folder(
        tmp_path, [*toy_samples("generation", 1), *toy_samples("understanding", 1)]
    )
    (folder / "dataset.json").write_text('{"codebook_size": 100}')
    batches((str(folder),))
    (folder / "dataset.json").write_text(noted)
    with pytest.raises(ValueError, match=words):
        batches((str(folder),))


MIXTURE = """
sources:
  drawing: {path: a, task: generation, limit: 11}
  asking: {path: a, task: understanding}
  rest: b
phases:
  - {samples: 31, weights: {drawing: 2, rest: 1}}
  - {samples: 26, weights: {drawing: 3, asking: 1, rest: 1}}
  - {weights: {asking: 2, rest: 1}}
"""


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "data_size": st.integers(1, 5),
            "micro_batch_size": st.integers(1, 3),
            "micro_batch_multiple": st.integers(1, 2),
            "packing": st.booleans(),
            "variable_seq_lengths": st.booleans(),
        }
    ),
    st.integers(0, 3),
    st.integers(0, 100),
)
def test_a_mixture_file_gives_each_position_its_sample_in_any_layout(
    folders: tuple[str, ...], layout: dict[str, Any], window: int, position: int
) -> None:
    """Begun at any position: a fresh loader for every example is a run that resumes there."""
    file = Path(folders[0]).parent / "mixture.yaml"
    file.write_text(MIXTURE)
    data = {"data_path": (str(file),), "shuffle_window_shards": window, "seq_length": 192}
    ranks = step_of_all_ranks(folders, position, **data, **layout)

    mixture = batches(folders, **data).mixture
    expected = []
    for offset in range(position, position + GBS):
        address = mixture.locate(offset)
        raw = mixture.indexes[address.index_number].read(address.sample_number, CODEBOOK_SIZE)
        tokens = toy_encoder(raw, mixture.drops_prompt(offset, 0.3)).tokens
        expected.append((offset, tuple(tokens.tolist())))
    found = [sample[:2] for sample in sum(map(samples_of, ranks), Counter()).elements()]
    assert sorted(found) == expected


def test_an_empty_row_is_all_padding(folders: tuple[str, ...]) -> None:
    loader = batches(folders, global_batch_size=1, micro_batch_size=4)
    (batch,) = loader.step(0)
    assert len(batch.segments) == 1
    filled = (batch.segment_ids != PADDING_SEGMENT).any(1).numpy()
    assert np.count_nonzero(filled) == 1
    sequences = batch.targets[NEXT_TOKEN].positions // batch.tokens.shape[1]
    assert set(sequences.tolist()) == set(np.flatnonzero(filled).tolist())
