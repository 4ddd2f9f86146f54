"""Inputs of the shard builder, compared with what the libraries that wrote them read."""

import json
import os
import pickle
import tarfile
from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_aia.building.convert_records import RecordError, convert_record
from megatron_aia.building.sources import json_records, known_formats, open_source
from megatron_aia.building.sources.base import FileCounts
from megatron_aia.building.sources.field_names import to_record

AWKWARD = [
    {"id": 0, "text": 'a "quoted" \\ ]},{ and more'},
    {"id": 1, "nested": {"list": [[], {}, [{"a": "é"}]]}},
    {},
    {"id": 3, "text": "two\nlines, 中文 and 🎨"},
    {"id": 4.5, "none": None, "long": "x" * 100},
]


def rows_of(source, start=0, stop=None):
    # A part travels to other processes.
    part = pickle.loads(pickle.dumps(source.part(start, len(source) if stop is None else stop)))
    return list(part.read())


def assert_ranges_agree(source, expected):
    assert len(source) == len(expected)
    for start, stop in combinations_with_replacement(range(len(expected) + 1), 2):
        assert rows_of(source, start, stop) == expected[start:stop]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 24])
@pytest.mark.parametrize(
    "write",
    [
        json.dumps,
        lambda records: json.dumps(records, indent=2),
        lambda records: "  " + json.dumps(records, ensure_ascii=False, separators=(",", ":")) + " ",
        lambda records: json.dumps(records, indent=1).replace("\n", "\r\n\t"),
    ],
)
def test_ranges_of_a_json_list(tmp_path, monkeypatch, write, chunk):
    monkeypatch.setattr(json_records, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_bytes(write(AWKWARD).encode())
    assert_ranges_agree(open_source(path), AWKWARD)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n \n\n"])
def test_ranges_of_json_lines(tmp_path, end):
    path = tmp_path / "a.jsonl"
    path.write_bytes(end.join(json.dumps(record) for record in AWKWARD).encode())
    assert_ranges_agree(open_source(path), AWKWARD)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("a]}{", max_size=2), inner),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(
    records=st.lists(st.dictionaries(st.text('ab",]}', max_size=3), JSON_VALUES), max_size=6),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 3]),
    is_ascii=st.booleans(),
)
def test_any_json_list(tmp_path_factory, records, chunk, indent, is_ascii):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=is_ascii), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "_CHUNK", chunk)
        source = open_source(path)
    middle = len(records) // 2
    assert rows_of(source) == records
    assert rows_of(source, 0, middle) + rows_of(source, middle) == records


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("a.json", ""),
        ("a.json", "{"),
        ("a.json", "{}"),
        ("a.json", "[1]"),
        ("a.json", "[{}"),
        ("a.json", "[{},"),
        ("a.json", "[{},]"),
        ("a.json", "[{} {}]"),
        ("a.json", '[{"a": tru}]'),
        ("a.json", "[{}] {}"),
        ("a.json", '[{"a": ' + "[" * 100_000),
        ("a.json", b'[{"a": "\xff"}]'),
        ("a.jsonl", "{}\n{"),
        ("a.jsonl", "[]"),
        ("a.jsonl", "{} {}"),
        ("a.json", None),
    ],
)
def test_files_without_records(tmp_path, name, contents):
    path = tmp_path / name
    if contents is not None:
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(ValueError, match=f"cannot read records from .*{name}: .+"):
        rows_of(open_source(path))


def test_an_unclosed_record_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_records, "_CHUNK", 10)
    monkeypatch.setattr(json_records, "_LONGEST_RECORD", 100)
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"b": "' + "x" * 10_000)
    with path.open("rb") as file:
        with pytest.raises(ValueError, match="record number 1"):
            list(json_records._item_offsets(file))
        assert file.tell() < 200


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=5), data=st.data())
def test_slices_number_records_over_files(counts, data):
    files = [str(number) for number in range(len(counts))]
    expected = [(file, i) for file, n in zip(files, counts, strict=True) for i in range(n)]
    numbers = FileCounts(files, counts)
    assert len(numbers) == len(expected)
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    slices = numbers.slices(start, stop)
    assert [(s.file, i) for s in slices for i in range(s.start, s.stop)] == expected[start:stop]


def write_tar(path, first, count):
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for number in range(first, first + count):
            writer.write(
                {
                    "__key__": f"dir.x/k{number}",
                    "jpg": b"picture %d" % number,
                    "txt": f"caption {number} é".encode(),
                    "cls": b"7",
                }
            )


def test_tars_of_pictures_and_captions(tmp_path):
    write_tar(tmp_path / "a.tar", 0, 4)
    write_tar(tmp_path / "b.tar", 4, 3)
    files = [str(tmp_path / name) for name in ("a.tar", "b.tar")]
    read = webdataset.WebDataset(files, shardshuffle=False)
    expected = [
        {"__key__": entry["__key__"], "jpg": entry["jpg"], "txt": entry["txt"].decode()}
        for entry in read
    ]
    assert len(expected) == 7
    assert_ranges_agree(open_source(tmp_path), expected)
    assert_ranges_agree(open_source(tmp_path / "b.tar"), expected[4:])


def test_no_tar_is_taken_for_whole_that_is_cut(tmp_path):
    write_tar(tmp_path / "a.tar", 0, 3)
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        end = max(info.offset_data for info in archive) + 512
    for size in range(0, end + 1, 256):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cannot read records from .*a\.tar"):
            open_source(tmp_path / "a.tar")


def save_emu3(folder, entries):
    folder.mkdir(exist_ok=True)
    names = [f"{number}.pth" for number in range(len(entries))]
    for name, entry in zip(names, entries, strict=True):
        torch.save(entry, folder / name)
    path = folder / "list.json"
    path.write_text(json.dumps({"prefix": str(folder), "path_list": names}))
    return path


@pytest.mark.parametrize("kind", ["int64", "int32", "int16", "uint16", "tensor"])
def test_lists_of_emu3(tmp_path, kind):
    codes = np.arange(6).reshape(2, 3) * 5000
    stored = torch.from_numpy(codes) if kind == "tensor" else codes.astype(kind)
    path = save_emu3(tmp_path, [{"name": "n", "images": stored, "texts": "a cat"}] * 2)
    source = open_source(path)
    assert source.codebook_size == 32_768
    first, second = rows_of(source)
    np.testing.assert_array_equal(first["images"], codes)
    record = convert_record(1, to_record(second))
    assert [turn.text for turn in record.turns] == ["a cat", "<image>"]
    np.testing.assert_array_equal(record.images[0], codes)


def test_arrays_that_numpy_1_has_pickled(tmp_path):
    path = save_emu3(tmp_path, [{"images": np.ones((2, 2), np.int64), "texts": "a"}])
    file = tmp_path / "0.pth"
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    rewrite_pickle(file, lambda data: data.replace(new, old))
    (row,) = rows_of(open_source(path))
    np.testing.assert_array_equal(row["images"], np.ones((2, 2)))


def rewrite_pickle(path, change):
    """Change the pickle in a file of ``torch.save``, which is a zip archive."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    changed = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            new = change(data) if name.endswith("data.pkl") else data
            changed += new != data
            archive.writestr(name, new)
    assert changed == 1


class Touch:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_lists_of_emu3_run_no_code(tmp_path):
    entries = [
        {"images": Touch(tmp_path / "made"), "texts": "a"},
        {"images": np.ones((2, 2), np.int64), "texts": Touch(tmp_path / "made")},
        {"images": np.array([[Touch(tmp_path / "made")]], object), "texts": "a"},
        {"images": np.full((2, 2), 32_768), "texts": "a"},
        {"images": np.full((2, 2), -1), "texts": "a"},
        {"images": np.ones((1, 2, 2), np.int64), "texts": "a"},
        {"images": np.ones((2, 2)), "texts": "a"},
        {"texts": "a"},
        [1],
    ]
    path = save_emu3(tmp_path, entries)
    (tmp_path / "3.pth").write_bytes((tmp_path / "3.pth").read_bytes()[:200])
    (tmp_path / "4.pth").unlink()
    found = rows_of(open_source(path))
    assert len(found) == len(entries)
    assert all(isinstance(row, RecordError) for row in found)
    assert "0.pth" in str(found[0])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("contents", ['{"path_list": 3}', '{"path_list": [3]}', '{"path_list": ['])
def test_damaged_lists_of_emu3(tmp_path, contents):
    (tmp_path / "list.json").write_text(contents)
    with pytest.raises(ValueError, match=r"cannot read records from .*list\.json"):
        open_source(tmp_path / "list.json")


LLAVA_ROWS = [
    {
        "id": f"r{number}",
        "image": {"bytes": b"picture %d" % number, "path": None} if number % 3 else None,
        "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
    }
    for number in range(11)
]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "train").mkdir()
    for name, rows in (("a", LLAVA_ROWS[:7]), ("b", LLAVA_ROWS[7:])):
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, tmp_path / "train" / f"{name}.parquet", row_group_size=3)
    source = open_source(tmp_path)
    assert source.holds_pictures
    assert_ranges_agree(source, LLAVA_ROWS)
    assert_ranges_agree(open_source(tmp_path / "train" / "b.parquet"), LLAVA_ROWS[7:])
    assert convert_record(1, to_record(rows_of(source)[1])).images == (b"picture 1",)
    (tmp_path / "train" / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"cannot read records from .*c\.parquet"):
        open_source(tmp_path)


def test_folders_of_save_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(LLAVA_ROWS).cast_column("image", datasets.Image())
    saved.save_to_disk(tmp_path / "all", num_shards=2)
    source = open_source(tmp_path / "all")
    assert source.holds_pictures and len(source.files) > 2
    assert_ranges_agree(source, LLAVA_ROWS)
    chosen = saved.select([9, 2, 4])
    chosen.save_to_disk(tmp_path / "chosen")
    assert rows_of(open_source(tmp_path / "chosen")) == [LLAVA_ROWS[i] for i in (9, 2, 4)]
    paths = [{**row, "image": "a.jpg"} for row in LLAVA_ROWS]
    datasets.Dataset.from_list(paths).save_to_disk(tmp_path / "paths")
    assert not open_source(tmp_path / "paths").holds_pictures
    datasets.DatasetDict({"train": saved, "test": chosen}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="several splits; name one of its folders: test, train"):
        open_source(tmp_path / "splits")
    (tmp_path / "all" / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read records from"):
        open_source(tmp_path / "all")


def test_formats_are_told_apart(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("[]")
    for name in ("empty", "notes.txt"):
        with pytest.raises(ValueError, match="of no known format; name it by --format"):
            open_source(tmp_path / name)
    assert len(open_source(tmp_path / "notes.txt", "json")) == 0
    with pytest.raises(ValueError, match="--format csv is unknown"):
        open_source(tmp_path / "notes.txt", "csv")
    with pytest.raises(ValueError, match="does not exist"):
        open_source(tmp_path / "missing", "json")
    names = [form.name for form in known_formats()]
    assert len(set(names)) == len(names) and "emu3_codes" in names


PICTURE = b"picture"


@pytest.mark.parametrize(
    ("row", "texts", "images"),
    [
        (
            {"input_prompt": "a cat", "output_image": "o.png"},
            ["a cat", "<image>"],
            ("o.png",),
        ),
        (
            {"input_prompt": "Night", "input_image": ["i.png"], "output_image": "o.png"},
            ["<image>Night", "<image>"],
            ("i.png", "o.png"),
        ),
        (
            {"path": "p.jpg", "cap": ["first", "second"], "resolution": {"height": 2, "width": 3}},
            ["first", "<image>"],
            ("p.jpg",),
        ),
        ({"path": "p.jpg", "cap": "only"}, ["only", "<image>"], ("p.jpg",)),
        ({"__key__": "k", "jpg": PICTURE, "txt": "a dog\n"}, ["a dog", "<image>"], (PICTURE,)),
        (
            {"image": "a", "conversations": {"from": ["human", "gpt"], "value": ["Q", "A"]}},
            ["<image>Q", "A"],
            ("a",),
        ),
        ({"image": {"bytes": PICTURE}, "caption": "x"}, ["x", "<image>"], (PICTURE,)),
    ],
)
def test_rows_of_other_data_sets(row, texts, images):
    record = convert_record(3, to_record(row))
    assert [turn.text for turn in record.turns] == texts
    assert record.images == images
    assert record.id == row.get("__key__", "3")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"jpg": PICTURE}, "no conversations"),
        ({"txt": "a"}, "no conversations"),
        ({"path": "a.jpg", "cap": [["a"]]}, "a turn is not from"),
        ({"path": "a.jpg", "cap": "an <image> of a"}, "image tags do not match"),
        ({"path": 3, "cap": "a"}, "image is neither"),
        ({"path": "a.jpg", "cap": []}, "a turn is not from"),
        ({"conversations": {"from": ["human"], "value": "Q"}}, "no conversations"),
        ({"input_prompt": None, "output_image": "o"}, "a turn is not from"),
    ],
)
def test_rows_that_do_not_fit(row, reason):
    with pytest.raises(RecordError, match=reason):
        convert_record(0, to_record(row))
