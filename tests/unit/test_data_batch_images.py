"""Images to look at: each micro-batch has its own, in the order of their tokens, where needed."""

import io
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy_data import (
    CODEBOOK_SIZE,
    PAD,
    ToyEncoder,
    toy_encoder,
    toy_sample,
    toy_samples,
    write_folder,
)

from megatron_aia.aia.roles import Task, key_code, query_code
from megatron_aia.building.demo.training import train_sentencepiece
from megatron_aia.config.tree import Config
from megatron_aia.data.batch import build_micro_batch
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.open import build_step_loader
from megatron_aia.data.packing import truncate
from megatron_aia.data.replacements import CorruptSamplesFound
from megatron_aia.data.sample import ImageSource, TokenizedSample
from megatron_aia.data.targets import NEXT_TOKEN, next_token_target
from megatron_aia.shards.raw_sample import Picture, RawSample
from megatron_aia.training.setup import build_data

image_module = pytest.importorskip("PIL.Image")

SIZE = 4
SLOT = 500
SLOTS = 3


def gray_png(gray: int) -> bytes:
    file = io.BytesIO()
    image_module.new("RGB", (SIZE, SIZE), (gray, 0, 255 - gray)).save(file, "PNG")
    return file.getvalue()


def seen_sample(grays: list[int]) -> dict[str, Any]:
    """A sample whose pictures are of these grays, told as characters of its question."""
    words = "".join(map(chr, grays))
    sample = toy_sample("s" + "_".join(map(str, grays)), "understanding", words, "answer")
    sample["json"]["conversations"][0]["value"] = "<image>" * len(grays) + words
    members = [f"{number}.png" for number in range(len(grays))]
    sample["json"] |= {"codes": [], "images": [{"member": member} for member in members]}
    contents = {m: gray_png(gray) for m, gray in zip(members, grays, strict=True)}
    return {key: sample[key] for key in ("__key__", "json")} | contents


def load(picture: Picture) -> np.ndarray:
    return np.ascontiguousarray(picture.decode().transpose(2, 0, 1))


@partial(ToyEncoder, fingerprint="looking", image_size=SIZE)
def looking_encoder(sample: RawSample, drop_prompt: bool) -> TokenizedSample:
    """Write [1], then for each image its slots and its gray, and the answer."""
    if sample.task is not Task.UNDERSTANDING:
        return toy_encoder(sample, drop_prompt)
    grays = [ord(c) for c in sample.turns[0].text.replace("<image>", "")]
    tokens, images = [1], []
    for gray, picture in zip(grays, sample.images, strict=True):
        tokens += [SLOT] * SLOTS
        images.append(ImageSource(len(tokens), partial(load, picture)))
        tokens.append(gray)
    answer = sample.turns[1].text.encode()
    weights = np.array([0.0] * len(tokens) + [1.0] * len(answer), np.float32)
    tokens += answer
    slots = np.array(tokens) == SLOT
    roles = slots * key_code(Task.UNDERSTANDING) + (weights > 0) * query_code(Task.UNDERSTANDING)
    targets = {NEXT_TOKEN: next_token_target(np.array(tokens), weights)}
    return TokenizedSample(
        sample.key, sample.task, np.array(tokens), roles.astype(np.uint8), targets, tuple(images)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seen = [seen_sample([10 + i, 60 + i, 110 + i][: 1 + i % 3]) for i in range(9)]
    samples = [*seen, *toy_samples("generation", 9)]
    return write_folder(tmp_path_factory.mktemp("data"), samples)


def batches(folder: Path, rank: int = 0, loads_images: bool = True, **changes: Any) -> StepLoader:
    config = Config()
    config.data.data_path = (str(folder),)
    config.data.seq_length = 64
    config.data.global_batch_size = 8
    ranks = changes.pop("data_parallel_size", 1)
    for name, value in changes.items():
        assert hasattr(config.data, name)
        setattr(config.data, name, value)
    config.model.codebook_size = CODEBOOK_SIZE
    return build_step_loader(config, looking_encoder, loads_images, data_rank=rank, data_size=ranks)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
@pytest.mark.parametrize("data_parallel_size", [1, 2])
def test_images_stand_in_the_order_of_their_tokens(
    folder: Path, packing: bool, micro_batch_size: int, data_parallel_size: int
) -> None:
    seen = 0
    for rank in range(data_parallel_size):
        layout = {"micro_batch_size": micro_batch_size, "data_parallel_size": data_parallel_size}
        for batch in batches(folder, rank, packing=packing, **layout).step(24):
            assert batch.images is not None and batch.images.dtype == torch.uint8
            tokens = batch.tokens.flatten()
            ends = ((tokens[:-1] == SLOT) & (tokens[1:] != SLOT)).nonzero().flatten()
            grays = tokens[ends + 1]
            assert batch.images.shape == (len(grays), 3, SIZE, SIZE)
            assert torch.equal(batch.images[:, 0, 0, 0], grays.to(torch.uint8))
            assert torch.equal(batch.images[:, 2, 3, 1], (255 - grays).to(torch.uint8))
            assert (tokens == SLOT).sum() == len(grays) * SLOTS
            seen += len(grays)
    assert seen > 4


def test_images_change_no_other_tensor(folder: Path) -> None:
    with_images, without = (batches(folder, loads_images=each).step(8) for each in (True, False))
    for one, other in zip(with_images, without, strict=True):
        assert other.images is None
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.segment_ids, other.segment_ids)


def test_a_stage_without_images_never_decodes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Picture) -> np.ndarray:
        raise AssertionError("decoded")

    monkeypatch.setattr("megatron_aia.shards.pictures.ShardPicture.decode", fail)
    other_stage = batches(folder, loads_images=False)
    other_stage.check()
    other_stage.step(0)
    first_stage = batches(folder)
    first_stage.check()
    with pytest.raises(AssertionError, match="decoded"):
        first_stage.step(0)


def test_fingerprint_is_that_of_every_stage(folder: Path) -> None:
    assert batches(folder).fingerprint == batches(folder, loads_images=False).fingerprint


def test_a_micro_batch_without_images_has_an_empty_tensor(folder: Path) -> None:
    drawing = batches(folder, task_ratio="1:0").step(0)
    assert {b.images.shape for b in drawing if b.images is not None} == {(0, 3, SIZE, SIZE)}
    empty = build_micro_batch([[]], 8, PAD, image_size=SIZE)
    assert empty.images is not None and empty.images.shape == (0, 3, SIZE, SIZE)


def test_a_damaged_picture_is_named_by_the_step_that_needs_it(tmp_path: Path) -> None:
    broken = seen_sample([10])
    broken["0.png"] = broken["0.png"][:40]
    folder = write_folder(tmp_path, [broken, *toy_samples("generation", 1)])
    loader = batches(folder)
    loader.check()
    with pytest.raises(CorruptSamplesFound, match=r"part-00000\.tar: sample s10: 0\.png.*rebuild"):
        loader.step(0)


def tokenized(folder: Path, grays: list[int]) -> TokenizedSample:
    write_folder(folder, [seen_sample(grays), *toy_samples("generation", 1)])
    return looking_encoder(batches(folder).mixture.indexes[0].read(0, CODEBOOK_SIZE), False)


def test_a_cut_sample_keeps_its_images_whole(tmp_path: Path) -> None:
    sample = tokenized(tmp_path, [10, 20])
    cut = truncate(sample, len(sample) - 5)
    assert cut.images == sample.images
    assert (cut.tokens == SLOT).sum() == 2 * SLOTS


def test_an_image_is_never_cut_whatever_its_roles(tmp_path: Path) -> None:
    """Targets and roles may end before the last slot does."""
    sample = tokenized(tmp_path, [10, 20])
    weights = np.zeros_like(sample.label_weights)
    weights[1] = 1
    targets = {NEXT_TOKEN: next_token_target(sample.tokens, weights)}
    early = TokenizedSample(
        sample.key, sample.task, sample.tokens, np.zeros_like(sample.roles), targets, sample.images
    )
    last = sample.images[-1].stop
    assert len(truncate(early, last)) == last
    with pytest.raises(ValueError, match=f"--seq-length to {last} or"):
        truncate(early, last - 1)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_run_loads_images_on_its_first_stage(folder: Path, tmp_path: Path, stage: int) -> None:
    train_sentencepiece(["a few words"] * 4, tmp_path / "tokenizer.model", 280)
    config = Config()
    config.model.codebook_size = CODEBOOK_SIZE
    config.data.data_path = (str(folder),)
    config.data.tokenizer_model = str(tmp_path)

    spec: Any = SimpleNamespace(encoder=lambda *_: looking_encoder)
    parallel: Any = SimpleNamespace(
        data_rank=0,
        data_size=1,
        virtual_stages=1,
        has_embedding=lambda virtual_stage: stage == 0 and virtual_stage == 0,
    )
    batches = build_data(config, spec, parallel)
    images = [batch.images for batch in batches.step(0)]
    assert all((each is not None) == (stage == 0) for each in images)
