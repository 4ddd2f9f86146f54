"""--image-tokenizer: codes made while training are those that the shards would have held."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("PIL.Image")
pytest.importorskip("transformers")

from support.layouts import MODELS
from support.picture_data import build_twice, write_codebook, write_janus_tokeniser
from support.runs import VOCAB_SIZE
from support.tiny_data import CODEBOOK_SIZE, ByteTokenizer

from megatron_aia.aia.roles import Task
from megatron_aia.config import Config, DataConfig
from megatron_aia.config.validate import validate
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.replacements import CorruptSamplesFound
from megatron_aia.data.tokenizer import load_text_tokenizer
from megatron_aia.models import load_model_spec
from megatron_aia.shards.index import ShardIndex
from megatron_aia.shards.pictures import ShardPicture
from megatron_aia.training import setup
from megatron_aia.training.setup import build_data

PARALLEL: Any = SimpleNamespace(
    data_rank=0, data_size=1, virtual_stages=1, has_embedding=lambda virtual_stage: True
)


def write_emu3_tokeniser(folder: Path) -> Path:
    import transformers

    torch.manual_seed(0)
    config = transformers.Emu3VQVAEConfig(
        codebook_size=CODEBOOK_SIZE,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1],
        num_res_blocks=1,
        hidden_size=32,
    )
    transformers.Emu3VQVAE(config).save_pretrained(folder)
    settings = {"min_pixels": 16 * 16, "max_pixels": 40 * 40}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


CASES = {
    "janus_pro, transformers": lambda folder: write_janus_tokeniser(folder / "vq", "transformers"),
    "janus_pro, original": lambda folder: write_janus_tokeniser(folder / "vq", "original"),
    "janus_pro, codebook": lambda folder: write_codebook(folder / "codebook.npz", True),
    "emu3, transformers": lambda folder: write_emu3_tokeniser(folder / "vq"),
    "emu3, codebook": lambda folder: write_codebook(folder / "codebook.npz", False),
}


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Config]:
    """Configurations of the same records with stored codes, and with codes made online."""
    family = request.param.split(",")[0]
    folder = tmp_path_factory.mktemp("case")
    tokeniser = CASES[request.param](folder)
    offline, online = build_twice(folder, tokeniser, family)
    return config_of(family, offline), config_of(family, online, image_tokenizer=str(tokeniser))


@pytest.fixture
def janus(tmp_path: Path) -> Config:
    """The codebook and the pictures of a small Janus-Pro."""
    codebook = write_codebook(tmp_path / "codebook.npz", True)
    _, online = build_twice(tmp_path, codebook, "janus_pro")
    return config_of("janus_pro", online, image_tokenizer=str(codebook))


def config_of(family: str, folder: Path, **data: Any) -> Config:
    return Config(
        model=replace(MODELS[family], text_vocab_size=VOCAB_SIZE),
        data=DataConfig(
            data_path=(str(folder),),
            seq_length=256,
            micro_batch_size=2,
            global_batch_size=10,
            task_ratio="2:2:1:2",
            cfg_drop_prob=0.3,
            **data,
        ),
    )


def with_data(config: Config, **values: Any) -> Config:
    return replace(config, data=replace(config.data, **values))


def open_data(config: Config) -> StepLoader:
    return build_data(config, load_model_spec(config.model.model), PARALLEL)


def assert_equal(one: MicroBatch, other: MicroBatch) -> None:
    for name, value in vars(one).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(other, name)), name
    assert one.tasks == other.tasks
    for ours, theirs in zip(one.segments, other.segments, strict=True):
        assert (ours.batch_index, ours.start, ours.stop) == (
            *(theirs.batch_index, theirs.start, theirs.stop),
        )
        for term, other_term in zip(ours.terms, theirs.terms, strict=True):
            assert term.task == other_term.task
            np.testing.assert_array_equal(term.queries, other_term.queries)
            np.testing.assert_array_equal(term.keys, other_term.keys)


def test_micro_batches_are_those_of_stored_codes(case: tuple[Config, Config]) -> None:
    stored, made = (open_data(config) for config in case)
    first_code = case[0].model.text_vocab_size
    codes = set()
    for position in range(0, 40, 10):
        steps = (data.step(position) for data in (stored, made))
        for one, other in zip(*steps, strict=True):
            assert_equal(one, other)
            codes |= set(one.tokens[one.tokens >= first_code].tolist())
    assert len(codes) > 8, "nothing passes by being always the same code"


def test_the_online_folder_holds_no_codes(case: tuple[Config, Config]) -> None:
    offline, online = (open_data(config).mixture.indexes[0] for config in case)
    assert any(isinstance(image, np.ndarray) for image in images_of(offline))
    assert all(isinstance(image, ShardPicture) for image in images_of(online))
    description = json.loads((Path(online.folder) / "dataset.json").read_text())
    assert (description["codebook_size"], description["image_tokenizer"]) == (0, "")


def images_of(index: ShardIndex) -> list[Any]:
    return [image for i in range(len(index)) for image in index.read(i, CODEBOOK_SIZE).images]


def test_rows_are_planned_without_decoding_a_picture(
    case: tuple[Config, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ShardPicture) -> np.ndarray:
        raise AssertionError("decoded")

    _, config = case
    for kept in Path(config.data.data_path[0]).glob(".index/lengths-*"):
        kept.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(ShardPicture, "decode", fail)
        if config.model.model == "janus_pro":
            patch.setattr(ShardPicture, "pixel_size", fail)
        data = open_data(config)
        (index,), (lengths,) = data.mixture.indexes, data._lengths
        # The longest answers are cut on trial before a run.
        longest = int(lengths[index.tasks == Task.UNDERSTANDING].max())
        cut = {"seq_length": longest - 1, "overlong_samples": "truncate"}
        data = open_data(with_data(config, task_ratio="0:1", **cut))
        data = open_data(with_data(config, task_ratio="1:1"))
        with pytest.raises(AssertionError, match="decoded"):
            data.step(0)
    for number in range(len(index)):
        raw = index.read(number, CODEBOOK_SIZE)
        written, outline = data.encoder(raw, False), data.encoder.dry_run(raw)
        assert lengths[number] == len(written) == len(outline)
        np.testing.assert_array_equal(written.roles, outline.roles)
        np.testing.assert_array_equal(written.label_weights, outline.label_weights)


def test_the_tokeniser_is_part_of_the_fingerprint(janus: Config, tmp_path: Path) -> None:
    spec = load_model_spec("janus_pro")
    vq = write_janus_tokeniser(tmp_path / "vq", "transformers")
    first, second = open_data(janus), open_data(with_data(janus, image_tokenizer=str(vq)))
    assert first.encoder.fingerprint == open_data(janus).encoder.fingerprint
    assert first.fingerprint != second.fingerprint
    text = load_text_tokenizer(janus.data.data_path[0])
    without = {spec.encoder(janus, text).fingerprint, spec.encoder(janus, text, None).fingerprint}
    assert len(without | {first.encoder.fingerprint, second.encoder.fingerprint}) == 3


def test_the_size_of_emu3s_images_is_part_of_it_too(tmp_path: Path) -> None:
    """Lengths are kept under the fingerprint, and depend on the size."""
    codebook = write_codebook(tmp_path / "codebook.npz", False)
    vq = write_emu3_tokeniser(tmp_path / "vq")
    images: list[Any] = [None]
    for path in (codebook, vq):
        images += [setup.load_image_tokenizer(path, area) for area in (16 * 16, 24 * 24)]
    assert images[1].name == images[2].name and images[3].name == images[4].name
    spec, config = load_model_spec("emu3"), Config(model=MODELS["emu3"])
    prompts = [spec.encoder(config, ByteTokenizer(), tokenizer) for tokenizer in images]
    assert len({prompt.fingerprint for prompt in prompts}) == len(prompts)


def test_it_runs_on_the_device_and_draws_no_random_number_of_the_run(
    janus: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    load = setup.load_image_tokenizer

    def loads(*arguments: Any) -> Any:
        calls.append(arguments)
        return load(*arguments)

    monkeypatch.setattr(setup, "load_image_tokenizer", loads)
    vq = write_janus_tokeniser(tmp_path / "vq", "transformers")
    before = torch.get_rng_state()
    open_data(with_data(janus, image_tokenizer=str(vq)))
    assert calls == [(str(vq), janus.model.image_size**2, str(setup.device()))]
    assert torch.equal(torch.get_rng_state(), before)


def test_without_the_flag_the_sample_and_the_way_out_are_named(case: tuple[Config, Config]) -> None:
    _, online = case
    for kept in Path(online.data.data_path[0]).glob(".index/lengths-*"):
        kept.unlink()
    with pytest.raises(
        ValueError, match=r"shard-000000\.tar/00000000.*--image-tokenizer, or build"
    ):
        open_data(with_data(online, image_tokenizer=None))


def test_a_path_that_is_not_there(janus: Config) -> None:
    with pytest.raises(ValueError, match="--image-tokenizer nowhere does not exist"):
        validate(with_data(janus, image_tokenizer="nowhere"), world_size=1)


def test_a_file_that_is_no_tokeniser(janus: Config, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(
        ValueError, match=r"--image-tokenizer .*text.npz cannot be used: .* codebook"
    ):
        open_data(with_data(janus, image_tokenizer=str(tmp_path / "text.npz")))


@pytest.mark.parametrize("size", [CODEBOOK_SIZE - 1, CODEBOOK_SIZE + 1])
def test_another_codebook_size(janus: Config, tmp_path: Path, size: int) -> None:
    path = write_codebook(tmp_path / "other.npz", True, size)
    with pytest.raises(ValueError, match=f"has a codebook of {size}, and --codebook-size is 24"):
        open_data(with_data(janus, image_tokenizer=str(path)))


def test_a_tokeniser_of_other_sizes(janus: Config, tmp_path: Path) -> None:
    path = write_codebook(tmp_path / "wide.npz", is_square=False)
    message = "makes 1 x 3 codes of a picture of 1920 x 640 pixels, and the model draws 2 x 2"
    with pytest.raises(ValueError, match=message):
        open_data(with_data(janus, image_tokenizer=str(path)))


def test_an_image_that_no_codes_fill(janus: Config, tmp_path: Path) -> None:
    vq = write_janus_tokeniser(tmp_path / "vq", "original")
    small = replace(janus, model=replace(janus.model, image_size=20, patch_size=10))
    with pytest.raises(ValueError, match=r"cannot be used: .* is no square of whole codes of 8"):
        open_data(with_data(small, image_tokenizer=str(vq)))


def test_a_damaged_picture_is_named_once(janus: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(with_data(janus, task_ratio="1:0"))
    monkeypatch.setattr("megatron_aia.shards.pictures.MAX_PIXELS", 50)
    with pytest.raises(CorruptSamplesFound) as caught:
        data.step(0)
    for damage in caught.value.samples:
        assert re.search(r"shard-000000\.tar: sample 0+\d+: .*rebuild", damage.reason)
        assert damage.reason.count("sample") == 1


def test_a_picture_too_narrow_for_emu3_is_found_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokeniser = write_emu3_tokeniser(tmp_path / "vq")
    _, online = build_twice(tmp_path, tokeniser, "emu3")
    monkeypatch.setattr(ShardPicture, "pixel_size", lambda picture: (100, 501))
    message = r"sample shard-000000\.tar/0+: a picture of .* is too narrow; build the shards"
    with pytest.raises(ValueError, match=message):
        open_data(config_of("emu3", online, image_tokenizer=str(tokeniser)))
