import importlib.util
import json
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from megatron_aia.aia.roles import Task
from megatron_aia.building.demo import read_pictures
from megatron_aia.data.tokenizer import load_text_tokenizer
from megatron_aia.models.image_tokenizers import load_image_tokenizer
from megatron_aia.models.janus_pro.sample_encoder import JanusSampleEncoder
from megatron_aia.models.janus_pro.special_tokens import JanusSpecialTokens
from megatron_aia.models.janus_pro.vocabulary import JanusVocabulary
from megatron_aia.shards.codes import decode_codes
from megatron_aia.shards.index import open_index
from megatron_aia.shards.patch_quantizer import PatchQuantizer
from megatron_aia.shards.reader import CodesEntry, parse_description

image_module = pytest.importorskip("PIL.Image")

TOOL = Path(__file__).parents[2] / "tools" / "build_shards.py"
GRAYS = np.arange(0, 256, 16, dtype=np.uint8)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("build_shards", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path):
    """Records of every task with their pictures, and a codebook of 16 grays."""
    codebook = np.broadcast_to(GRAYS[:, None, None, None], (16, 4, 4, 3)).copy()
    PatchQuantizer(codebook, image_area=8 * 8).save(tmp_path / "codebook.npz")
    (tmp_path / "pictures").mkdir()
    for name, gray in (("dark.png", 16), ("light.jpg", 240)):
        image_module.new("RGB", (30, 30), (gray,) * 3).save(tmp_path / "pictures" / name)
    write_records(
        tmp_path,
        [
            ("dark", "dark.png", "a dark square", "<image>"),
            ("what", "light.jpg", "<image>\nWhat is it?", "A light square"),
            ("edit", ["dark.png", "light.jpg"], "<image>\nMake it light", "<image>"),
            ("talk", None, "Hello", "Hello"),
        ],
    )
    return tmp_path


def write_records(folder, rows):
    records = [
        {
            "id": record_id,
            **({"image": image} if image else {}),
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": answer},
            ],
        }
        for record_id, image, question, answer in rows
    ]
    (folder / "records.json").write_text(json.dumps(records))


def run(tool, source, *flags):
    arguments = {
        "--records": source / "records.json",
        "--image-root": source / "pictures",
        "--image-tokenizer": source / "codebook.npz",
        "--output": source / "data",
    }
    return tool.main([str(part) for pair in arguments.items() for part in pair] + list(flags))


def read_shards(folder):
    """Return suffix -> contents of every sample, by key."""
    samples = {}
    for shard in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                key, suffix = member.name.split(".", 1)
                samples.setdefault(key, {})[suffix] = archive.extractfile(member).read()
    return samples


def crc32(data: bytes) -> str:
    return f"{zlib.crc32(data):08x}"


def codes_of(members, codebook_size):
    """Decode a sample's codes as training does."""
    entries = json.loads(members["json"])["codes"]
    return [
        decode_codes(
            members[entry["member"]],
            CodesEntry(entry["member"], entry["height"], entry["width"]),
            codebook_size,
            crc32(members[entry["member"]]),
        )
        for entry in entries
    ]


def test_every_task_is_written(tool, source, capsys):
    assert run(tool, source, "--samples-per-shard", "2") == 0
    assert "1 generation, 1 mixed, 1 text, 1 understanding" in capsys.readouterr().out
    assert sorted(path.name for path in (source / "data").iterdir()) == [
        "dataset.json",
        "shard-000000.tar",
        "shard-000001.tar",
    ]
    dark, what, edit, talk = read_shards(source / "data").values()
    assert set(dark) == {"json", "emu3.npy"}
    assert set(edit) == {"json", "0.emu3.npy", "1.emu3.npy"}
    assert set(talk) == {"json"}
    np.testing.assert_array_equal(codes_of(dark, 16)[0], np.full((2, 2), 1))
    assert [codes[0, 0] for codes in codes_of(edit, 16)] == [1, 15]
    description = json.loads(what["json"])
    assert description["id"] == "what"
    assert description["task"] == "understanding"
    assert description["conversations"][0] == {"from": "human", "value": "<image>What is it?"}
    assert description["codes"] == [
        {"member": "emu3.npy", "height": 2, "width": 2, "crc32": crc32(what["emu3.npy"])}
    ]
    assert description["crc32"] == crc32(what["json"].removeprefix(b'{"crc32": "')[8:])
    assert "images" not in description
    assert all(parse_description(sample["json"]) for sample in (dark, what, edit, talk))


def test_description_of_the_folder(tool, source):
    run(tool, source)
    assert json.loads((source / "data" / "dataset.json").read_text()) == {
        "format_version": 1,
        "num_samples": {"generation": 1, "mixed": 1, "text": 1, "understanding": 1},
        "codebook_size": 16,
        "image_tokenizer": PatchQuantizer.load(source / "codebook.npz").name,
        "dropped": {},
        "shards": [
            {"name": "shard-000000.tar", "size": (source / "data/shard-000000.tar").stat().st_size}
        ],
    }


def test_kept_images_are_the_files(tool, source):
    assert run(tool, source, "--keep-images") == 0
    _, what, edit, _ = read_shards(source / "data").values()
    assert what["jpg"] == (source / "pictures" / "light.jpg").read_bytes()
    assert set(edit) == {"json", "0.emu3.npy", "1.emu3.npy", "0.png", "1.jpg"}
    crc = crc32((source / "pictures" / "dark.png").read_bytes())
    first = {"member": "0.png", "width": 30, "height": 30, "crc32": crc}
    assert json.loads(edit["json"])["images"][0] == first


def test_images_to_look_at_as_pictures(tool, source):
    assert run(tool, source, "--understanding-images", "pictures") == 0
    index = open_index(source / "data")
    samples = [index.read(number, 16) for number in range(4)]
    (drawn,), (seen,), (looked_at, made), () = (sample.images for sample in samples)
    for codes, gray in ((drawn, 1), (made, 15)):
        np.testing.assert_array_equal(codes, np.full((2, 2), gray))
    for picture, gray in ((seen, 240), (looked_at, 16)):
        np.testing.assert_array_equal(picture.decode(), np.full((30, 30, 3), gray))
    dark, what, edit, talk = read_shards(source / "data").values()
    assert [set(members) for members in (dark, what, edit, talk)] == [
        {"json", "janus.npy"},
        {"json", "jpg"},
        {"json", "0.png", "1.janus.npy"},
        {"json"},
    ]
    assert what["jpg"] == (source / "pictures" / "light.jpg").read_bytes()
    description = json.loads(what["json"])
    assert description["codes"] == []
    entry = {"member": "jpg", "width": 30, "height": 30, "crc32": crc32(what["jpg"])}
    assert description["images"] == [entry]
    description = json.loads(edit["json"])
    none, drawn = description["codes"]
    assert none is None and (drawn["member"], drawn["height"]) == ("1.janus.npy", 2)
    seen, none = description["images"]
    assert none is None and (seen["member"], seen["width"]) == ("0.png", 30)


def test_drawn_pictures_may_be_kept_beside_stored_ones(tool, source):
    assert run(tool, source, "--understanding-images", "pictures", "--keep-images") == 0
    _, _, edit, _ = read_shards(source / "data").values()
    assert set(edit) == {"json", "0.png", "1.jpg", "1.janus.npy"}
    _, made = open_index(source / "data").read(2, 16).images
    assert made.shape == (2, 2)


def test_without_a_tokeniser_every_image_is_a_picture(tool, source, capsys):
    paths = ("--records", source / "records.json", "--image-root", source / "pictures")
    arguments = [str(part) for part in (*paths, "--output", source / "data")]
    assert tool.main(arguments) == 0
    assert "train on them with --image-tokenizer" in capsys.readouterr().out
    dark, what, edit, talk = read_shards(source / "data").values()
    assert [set(members) for members in (dark, what, edit, talk)] == [
        {"json", "png"},
        {"json", "jpg"},
        {"json", "0.png", "1.jpg"},
        {"json"},
    ]
    assert dark["png"] == (source / "pictures" / "dark.png").read_bytes()
    assert json.loads(edit["json"])["codes"] == []
    index = open_index(source / "data")
    drawn, made = index.read(0, 16).images[0], index.read(2, 16).images[1]
    assert drawn.decode()[0, 0, 0] == 16 and made.decode()[0, 0, 0] == 240
    # What training could not read is not stored, be it to look at or to draw.
    image_module.new("RGB", (30, 30)).save(source / "pictures" / "dark.png", format="bmp")
    assert tool.main([*arguments, "--overwrite"]) == 2
    assert "the image is no picture to store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "kept_bytes", "reason"),
    [
        ("png", 20, "the image cannot be read"),
        ("png", 200, "the image cannot be read"),
        ("bmp", None, "the image is no picture to store"),
    ],
)
def test_pictures_that_training_could_not_read_are_not_stored(
    tool, source, capsys, kind, kept_bytes, reason
):
    whole = np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    path = source / "pictures" / "light.jpg"
    image_module.fromarray(whole).save(path, format=kind)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    flags = ("--understanding-images", "pictures", "--allow-dropped")
    assert run(tool, source, *flags, "0") == 2
    assert reason in capsys.readouterr().err
    assert not (source / "data").exists()
    # The edit draws this picture, so only a damaged one cannot be used there.
    assert run(tool, source, *flags, "2") == 0
    assert len(read_shards(source / "data")) == (3 if kind == "bmp" else 2)


def test_janus_does_not_look_at_codes(tool, source, capsys):
    folder = source / "janus"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "janus_vqgan"}')
    assert run(tool, source, "--image-tokenizer", str(folder)) == 2
    assert "is of --model janus_pro, which does not look at codes" in capsys.readouterr().err
    assert not (source / "data").exists()


def test_existing_output_is_refused(tool, source, capsys):
    assert run(tool, source) == 0
    before = (source / "data" / "shard-000000.tar").stat().st_mtime_ns
    assert run(tool, source) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (source / "data" / "shard-000000.tar").stat().st_mtime_ns == before
    assert run(tool, source, "--overwrite", "--image-area", "256") == 0
    assert codes_of(read_shards(source / "data")["000000000"], 16)[0].shape == (4, 4)


def test_foreign_folders_are_never_replaced(tool, source, capsys):
    (source / "data").mkdir()
    (source / "data" / "thesis.tex").write_text("years of work")
    assert run(tool, source, "--overwrite") == 2
    assert "no data folder" in capsys.readouterr().err
    assert (source / "data" / "thesis.tex").exists()


def test_dropped_records_are_counted(tool, source, capsys):
    rows = [
        ("good", "dark.png", "a dark square", "<image>"),
        ("lost", "lost.png", "a lost square", "<image>"),
        ("gone", "gone.png", "a lost square", "<image>"),
        ("mute", "dark.png", "What?", ""),
    ]
    write_records(source, rows)
    assert run(tool, source, "--allow-dropped", "2") == 2
    error = capsys.readouterr().err
    assert "3 records do not fit" in error
    assert "2  record lost: the image is not there" in error
    assert "1  record mute: a turn is empty" in error
    assert "--allow-dropped 3" in error
    assert not (source / "data").exists()
    assert run(tool, source, "--allow-dropped", "3") == 0
    assert "3 records do not fit" in capsys.readouterr().err
    assert json.loads((source / "data" / "dataset.json").read_text())["dropped"] == {
        "a turn is empty": 1,
        "the image is not there": 2,
    }


@pytest.mark.parametrize("kept_bytes", [20, 100])
def test_damaged_picture(tool, source, capsys, kept_bytes):
    whole = np.random.default_rng(0).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    path = source / "pictures" / "light.jpg"
    image_module.fromarray(whole).save(path, format="png")
    path.write_bytes(path.read_bytes()[:kept_bytes])
    assert run(tool, source) == 2
    assert "the image cannot be read" in capsys.readouterr().err
    assert sorted(path.name for path in source.iterdir()) == [
        "codebook.npz",
        "pictures",
        "records.json",
    ]
    assert run(tool, source, "--allow-dropped", "2") == 0
    assert len(read_shards(source / "data")) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image-tokenizer", "missing"], "no image tokeniser at missing"),
        (["--records", "missing.json"], "cannot read records from missing.json"),
        (["--samples-per-shard", "0"], "must be at least 1"),
    ],
)
def test_user_errors_are_one_line(tool, source, capsys, flags, message):
    assert run(tool, source, *flags) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("build_shards: ")
    assert message in last
    assert not (source / "data").exists()


def test_nothing_to_write(tool, source, capsys):
    write_records(source, [])
    assert run(tool, source) == 2
    assert "no sample to write" in capsys.readouterr().err


@pytest.fixture(scope="module")
def demo(tool, tmp_path_factory):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("demo") / "data"
    assert tool.main(["--demo", "--output", str(folder)]) == 0
    return folder


def test_demo_decodes_and_fits_the_preset(demo):
    samples = read_shards(demo)
    description = json.loads((demo / "dataset.json").read_text())
    assert len(samples) == sum(description["num_samples"].values())
    assert set(description["num_samples"]) == {"generation", "understanding"}
    for members in samples.values():
        (codes,) = codes_of(members, description["codebook_size"])
        assert codes.shape == (16, 16)
        assert json.loads(members["json"])["license"]
    assert PatchQuantizer.load(demo / "codebook.npz").codebook_size == 512
    tokenizer = load_text_tokenizer(demo)
    assert tokenizer.vocab_size == 512
    assert len(tokenizer.encode("You are a helpful assistant. USER: ")) < 12
    assert len(tokenizer.encode("16*16")) == 5


def test_demo_repeats(tool, demo, tmp_path):
    assert tool.main(["--demo", "--output", str(tmp_path / "again")]) == 0
    files = sorted(path.name for path in demo.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in files:
        assert (demo / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.fixture(scope="module")
def janus_demo(tool, tmp_path_factory):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("janus_demo") / "data"
    flags = ["--model", "janus_pro", "--grid-side", "6"]
    assert tool.main(["--demo", "--output", str(folder), *flags]) == 0
    return folder


def test_demo_of_janus_can_be_trained_on(janus_demo, demo):
    """Words of Emu3's demo, pictures to look at, square codes to draw; one crop of 3 pictures."""
    index, other = open_index(janus_demo), open_index(demo)
    of_picture = len(other) // (8 * 4)
    assert len(index) == 3 * of_picture
    tokenizer = load_text_tokenizer(janus_demo)
    assert tokenizer.vocab_size == 512
    special = JanusSpecialTokens.find(tokenizer)
    vocabulary = JanusVocabulary(512, 512)
    prompt = JanusSampleEncoder(vocabulary, tokenizer, special, image_size=48, patch_size=8)
    for number in range(0, len(index), 7):
        sample = index.read(number, 512)
        picture, record = divmod(number, of_picture)
        assert sample.turns == other.read(picture * 4 * of_picture + record, 512).turns
        (image,) = sample.images
        tokens = prompt(sample, False).tokens
        if sample.task is Task.GENERATION:
            assert image.shape == (6, 6)
            assert (tokens >= vocabulary.first_code).sum() == 36
        else:
            assert image.decode().shape == (48, 48, 3)
            assert (tokens == vocabulary.image_slot).sum() == 36
        assert len(tokens) < 120


def test_demo_of_janus_draws_what_it_looks_at(janus_demo):
    quantizer = load_image_tokenizer(janus_demo / "codebook.npz")
    index = open_index(janus_demo)
    seen = {
        index.read(n, 512).images[0].decode().tobytes() for n in np.flatnonzero(index.tasks == 2)
    }
    drawn = {index.read(n, 512).images[0].tobytes() for n in np.flatnonzero(index.tasks == 1)}
    pictures = [np.frombuffer(pixels, np.uint8).reshape(48, 48, 3) for pixels in seen]
    codes = {quantizer.encode(image_module.fromarray(pixels)).tobytes() for pixels in pictures}
    assert len(seen) == 3 and codes == drawn


def test_demo_words():
    pictures = read_pictures()
    assert len(pictures) == 8
    for picture in pictures:
        assert len(picture.prompts) >= 3
        assert len(picture.talks) >= 4
        assert picture.license
        assert not any(
            side in text.lower().split()
            for texts in (picture.prompts, *picture.talks)
            for text in texts
            for side in ("left", "right")
        )


def test_building_imports_no_torch():
    """Shards are built on machines that have none."""
    modules = "megatron_aia.building.build, megatron_aia.building.demo, megatron_aia.shards.verify"
    program = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
