"""The same prompts and pictures in every format become the same samples."""

import json

import numpy as np
import pytest
import torch
import webdataset
from support.tools import run_tool

from megatron_aia.aia.roles import Task
from megatron_aia.building.build import build_shards
from megatron_aia.building.options import BuildOptions
from megatron_aia.shards.index import open_index
from megatron_aia.shards.patch_quantizer import PatchQuantizer

image_module = pytest.importorskip("PIL.Image")

PROMPTS = ["a cat", "two dogs", "three birds"]


def llava(image, prompt):
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": "<image>"}]
    return {"image": image, "conversations": turns}


def write_json(folder, rows):
    path = folder / "input.json"
    path.write_text(json.dumps(rows))
    return path


def as_llava(folder, files):
    rows = [llava(name, prompt) for name, prompt in zip(files, PROMPTS, strict=True)]
    return write_json(folder, rows)


def as_sharegpt(folder, files):
    pairs = zip(files, PROMPTS, strict=True)
    rows = [{"input_prompt": prompt, "output_image": name} for name, prompt in pairs]
    return write_json(folder, rows)


def as_open_sora_plan(folder, files):
    pairs = zip(files, PROMPTS, strict=True)
    rows = [{"path": name, "cap": [prompt, "other"]} for name, prompt in pairs]
    return write_json(folder, rows)


def as_tars(folder, files):
    (folder / "tars").mkdir()
    for number, (name, prompt) in enumerate(zip(files, PROMPTS, strict=True)):
        with webdataset.TarWriter(str(folder / "tars" / f"{number}.tar"), encoder=False) as writer:
            picture = (folder / name).read_bytes()
            writer.write({"__key__": "same", "png": picture, "txt": prompt.encode()})
    return folder / "tars"


def rows_with_bytes(folder, files):
    return [
        llava({"bytes": (folder / name).read_bytes(), "path": name}, prompt)
        for name, prompt in zip(files, PROMPTS, strict=True)
    ]


def as_parquet(folder, files):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = folder / "input.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows_with_bytes(folder, files)), path)
    return path


def as_saved_dataset(folder, files):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list(rows_with_bytes(folder, files))
    rows.cast_column("image", datasets.Image()).save_to_disk(folder / "saved")
    return folder / "saved"


FORMATS = [as_llava, as_sharegpt, as_open_sora_plan, as_tars, as_parquet, as_saved_dataset]


@pytest.fixture
def pictures(tmp_path):
    """Pictures, a codebook, and the codes that it makes of them."""
    rng = np.random.default_rng(0)
    codebook = rng.integers(0, 256, (16, 4, 4, 3)).astype(np.uint8)
    quantizer = PatchQuantizer(codebook, image_area=16 * 16)
    quantizer.save(tmp_path / "codebook.npz")
    files, codes = [], []
    for number in range(len(PROMPTS)):
        pixels = rng.integers(0, 256, (20, 20 + 8 * number, 3)).astype(np.uint8)
        picture = image_module.fromarray(pixels)
        files.append(f"{number}.png")
        picture.save(tmp_path / files[-1])
        codes.append(quantizer.encode(picture))
    return tmp_path, files, codes


@pytest.mark.parametrize(
    ("write", "num_workers"),
    [*((write, 0) for write in FORMATS), (as_tars, 2), (as_parquet, 2)],
)
def test_every_format(pictures, write, num_workers):
    folder, files, codes = pictures
    options = BuildOptions(
        records=write(folder, files),
        output=folder / "data",
        image_root=folder,
        image_tokenizer=folder / "codebook.npz",
        samples_per_shard=2,
        num_workers=num_workers,
    )
    build_shards(options)
    index = open_index(options.output)
    assert len(index) == len(PROMPTS)
    for number, (prompt, grid) in enumerate(zip(PROMPTS, codes, strict=True)):
        sample = index.read(number, 16)
        assert sample.task is Task.GENERATION
        assert [turn.text for turn in sample.turns] == [prompt, "<image>"]
        np.testing.assert_array_equal(sample.images[0], grid)
    code, report, _ = run_tool("verify_shards", options.output, "--decode")
    assert code == 0, report


def test_codes_of_emu3_are_kept(tmp_path):
    codes = np.arange(12).reshape(3, 4) * 2500
    for name in ("a.pth", "b.pth"):
        torch.save({"name": name, "images": codes, "texts": "a cat"}, tmp_path / name)
    entry = {"prefix": str(tmp_path), "path_list": ["a.pth", "lost.pth", "b.pth"]}
    (tmp_path / "list.json").write_text(json.dumps(entry))
    arguments = ("--records", tmp_path / "list.json", "--output", tmp_path / "data")
    code, _, error = run_tool("build_shards", *arguments)
    assert code == 2
    assert "1  record lost.pth: its file cannot be loaded" in error
    code, output, _ = run_tool("build_shards", *arguments, "--allow-dropped", "1")
    assert code == 0 and "2 generation" in output
    assert "train on them with --image-tokenizer" not in output
    description = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert description["codebook_size"] == 32_768
    index = open_index(tmp_path / "data")
    assert [index.key(n) for n in range(2)] == [f"shard-000000.tar/00000000{n}" for n in (0, 2)]
    np.testing.assert_array_equal(index.read(1, 32_768).images[0], codes)
    more = ("--image-tokenizer", tmp_path / "codebook.npz", "--overwrite")
    PatchQuantizer(np.zeros((16, 4, 4, 3), np.uint8), 64).save(tmp_path / "codebook.npz")
    code, _, error = run_tool("build_shards", *arguments, *more)
    assert code == 2 and "holds codes already; leave out --image-tokenizer" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "csv"], "--format csv is unknown"),
        (["--num-workers", "-1"], "--num-workers -1 must be at least 0"),
        (["--device", "cuda"], "there is no CUDA device"),
    ],
)
def test_user_errors_are_one_line(tmp_path, flags, message):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    (tmp_path / "records.json").write_text("[]")
    arguments = ("--records", tmp_path / "records.json", "--output", tmp_path / "data", *flags)
    code, _, error = run_tool("build_shards", *arguments)
    assert code == 2 and message in error.splitlines()[-1]
    assert not (tmp_path / "data").exists()
