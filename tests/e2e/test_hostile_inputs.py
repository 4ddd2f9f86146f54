"""A thousand damaged inputs, drawn from seeds: each is refused in words or survived."""

import json
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.hugging_face import Fixture, write_checkpoint
from support.layouts import Layout
from support.picture_data import write_pictures, write_records
from support.runs import run_config, train, write_dataset
from support.spawn import spawn

from megatron_aia.aia.profile import SHIPPED_FOLDER, load_profile
from megatron_aia.building.record_samples import NO_SAMPLE, RecordSamples
from megatron_aia.checkpoint.choose import choose_checkpoint
from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.checkpoint.run_state import CONFIG_FILE, read_state
from megatron_aia.checkpoint.sharded import damage_is_named
from megatron_aia.checkpoint.single_process_model import SingleProcessModel
from megatron_aia.checkpoint.tensor_files import TensorFolder, read_json
from megatron_aia.models import load_hf_format, read_run_config
from megatron_aia.shards.pictures import decode_picture

pytestmark = pytest.mark.slow

MOST_SECONDS, MOST_BYTES = 60, 1 << 30
REFUSED, SURVIVED = "refused", "survived"
Try = Callable[[np.random.Generator, Path], str]


def damage(rng: np.random.Generator, file: Path) -> str:
    """Change a file as disks, networks and people do; return how."""
    data = bytearray(file.read_bytes())
    kind = rng.choice(["flip", "cut", "zeros", "noise", "double", "remove", "text", "empty"])
    place = int(rng.integers(len(data))) if data else 0
    length = int(rng.integers(1, 64))
    if kind == "flip" and data:
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[place:]
    elif kind == "zeros":
        data[place : place + length] = bytes(length)
    elif kind == "noise":
        data[place:place] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
    elif kind == "double":
        data[place:place] = data[place : place + 4 * length]
    elif kind == "text":
        words = (b"null", b"-1", b"1e999", b"[[[[", b"true", b"NaN", b'"', b"\xff\xfe", b"{}" * 9)
        word = words[int(rng.integers(len(words)))]
        data[place : place + len(word)] = word
    elif kind == "empty":
        data.clear()
    if kind == "remove":
        file.unlink()
    else:
        file.write_bytes(data)
    return str(kind)


def one_of(rng: np.random.Generator, folder: Path) -> Path:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return files[int(rng.integers(len(files)))]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    config = run_config(write_dataset(root / "data"), Layout(), 1, save=str(root / "run"))
    spawn(train, 1, config)
    shutil.copytree(find_checkpoint(root / "run"), root / "checkpoint")
    write_checkpoint(Fixture("original"), root / "hf")
    (root / "yaml").mkdir()
    shutil.copy(root / "checkpoint" / CONFIG_FILE, root / "yaml" / "run.yaml")
    shutil.copy(SHIPPED_FOLDER / "paper.yaml", root / "yaml" / "profile.yaml")
    (root / "records").mkdir()
    names = write_pictures(root / "records" / "pictures")
    write_records(root / "records" / "records.json", names)
    (root / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in ("a.png", "b.jpg", "c.webp"):
        Image.fromarray(noise).save(root / "pictures" / name)
    return {name: root / name for name in ("checkpoint", "hf", "yaml", "records", "pictures")}


def checked_checkpoint(rng: np.random.Generator, folder: Path) -> str:
    """Whatever byte has changed, it is found before anything is loaded."""
    damage(rng, one_of(rng, folder))
    same = all(
        (folder / file.relative_to(ORIGINAL[0])).is_file()
        and (folder / file.relative_to(ORIGINAL[0])).read_bytes() == file.read_bytes()
        for file in ORIGINAL[0].rglob("*")
        if file.is_file()
    )
    try:
        choose_checkpoint(folder)
    except ValueError:
        assert not same
        return REFUSED
    assert same, "damage that nobody has seen"
    return SURVIVED


ORIGINAL: list[Path] = []
"""The folder of which copies are damaged."""


def unchecked_checkpoint(rng: np.random.Generator, folder: Path) -> str:
    """With --no-verify-checkpoint: torch and megatron-core read what is there."""
    files = [path for path in folder.iterdir() if path.name in (".metadata", "common.pt")]
    files += list(folder.glob("*.distcp"))
    damage(rng, files[int(rng.integers(len(files)))])
    try:
        read_state(folder)
        model = read_run_config(str(folder / CONFIG_FILE)).model
        with SingleProcessModel(model) as weights, damage_is_named(folder):
            weights.read(folder)
    except ValueError as error:
        assert "\n" not in str(error)
        return REFUSED
    return SURVIVED


def hf_folder(rng: np.random.Generator, folder: Path) -> str:
    damage(rng, folder / str(rng.choice(["config.json", "model.safetensors"])))
    try:
        hf_format = load_hf_format("emu3")
        hf_format.model_config(read_json(folder / "config.json"))
        tensors = TensorFolder(folder)
        for name in tensors.shapes:
            tensors.read(name)
    except ValueError:
        return REFUSED
    return SURVIVED


def yaml_file(rng: np.random.Generator, folder: Path) -> str:
    file = one_of(rng, folder)
    damage(rng, file)
    try:
        if file.name == "run.yaml":
            read_run_config(str(file))
        else:
            load_profile(str(file)).resolve(32, "stage")
    except ValueError:
        return REFUSED
    return SURVIVED


def record_file(rng: np.random.Generator, folder: Path) -> str:
    damage(rng, folder / "records.json")
    try:
        samples = RecordSamples(folder / "records.json", folder / "pictures")
    except ValueError:
        return REFUSED
    left_out = 0
    for number, task in enumerate(samples.tasks):
        try:
            if task != NO_SAMPLE:
                samples.read(number, 16)
        except (ValueError, OSError):
            left_out += 1
    return "samples left out" if left_out or (samples.tasks == NO_SAMPLE).any() else SURVIVED


def picture(rng: np.random.Generator, folder: Path) -> str:
    file = one_of(rng, folder)
    if damage(rng, file) == "remove":
        return REFUSED
    try:
        decode_picture(file.read_bytes())
    except ValueError:
        return REFUSED
    return SURVIVED


TRIES: dict[str, tuple[str, int, Try]] = {
    "checkpoints": ("checkpoint", 250, checked_checkpoint),
    "checkpoints without checksums": ("checkpoint", 150, unchecked_checkpoint),
    "Hugging Face folders": ("hf", 150, hf_folder),
    "YAML": ("yaml", 150, yaml_file),
    "records": ("records", 150, record_file),
    "pictures": ("pictures", 150, picture),
}


@pytest.mark.parametrize("kind", TRIES)
def test_each_is_refused_in_words_or_survived(
    kind: str, originals: dict[str, Path], tmp_path: Path
) -> None:
    source, count, attempt = TRIES[kind]
    ORIGINAL[:] = [originals[source]]
    counts = spawn(try_all, 1, attempt, originals[source], count, tmp_path, timeout=1500)
    print(f"{kind}: {json.dumps(counts)}")
    assert sum(counts.values()) == count
    assert counts.get(REFUSED, 0) > count // 10


def try_all(attempt: Try, source: Path, count: int, folder: Path) -> dict[str, int]:
    found: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(count):
        copy = folder / str(seed)
        shutil.copytree(source, copy)
        start = time.monotonic()
        try:
            found[attempt(np.random.default_rng(seed), copy)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed} of {attempt.__name__}") from error
        assert time.monotonic() - start < MOST_SECONDS, f"seed {seed}"
        shutil.rmtree(copy)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MOST_BYTES
    return dict(found)
