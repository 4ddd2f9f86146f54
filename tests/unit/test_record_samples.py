"""Records read one by one are the samples that shards of them hold."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from support.picture_data import write_pictures, write_records

from megatron_aia.aia.roles import Task
from megatron_aia.building.build import build_shards
from megatron_aia.building.options import BuildOptions
from megatron_aia.building.record_samples import NO_SAMPLE, RecordSamples
from megatron_aia.shards.index import open_index


def test_equal_to_the_shards_of_the_same_records(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    write_records(tmp_path / "records.json", write_pictures(pictures))
    build_shards(
        BuildOptions(
            records=tmp_path / "records.json", output=tmp_path / "data", image_root=pictures
        )
    )
    shards, records = (
        open_index(tmp_path / "data"),
        RecordSamples(tmp_path / "records.json", pictures),
    )
    assert records.tasks.tolist() == shards.tasks.tolist()
    for number in range(len(shards)):
        built, read = shards.read(number, 16), records.read(number, 16)
        assert (read.task, read.turns) == (built.task, built.turns)
        for one, other in zip(built.images, read.images, strict=True):
            assert not isinstance(one, np.ndarray)
            assert not isinstance(other, np.ndarray)
            assert np.array_equal(one.decode(), other.decode())
            assert one.pixel_size() == other.pixel_size()
    assert records.key(0) == "records.json/draw-wide.png"


def test_records_that_are_no_samples_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    records = [{"conversations": talk}, {"conversations": talk[:1]}, {"conversations": []}]
    (tmp_path / "records.json").write_text(json.dumps(records))
    with caplog.at_level(logging.WARNING):
        found = RecordSamples(tmp_path / "records.json", tmp_path)
    assert found.tasks.tolist() == [Task.TEXT, NO_SAMPLE, NO_SAMPLE]
    assert "2 of 3 records are no samples: 1 " in caplog.text


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>a"}, {"from": "gpt", "value": "b"}]
    (tmp_path / "records.json").write_text(
        json.dumps([{"image": "no.png", "conversations": turns}])
    )
    with pytest.raises(FileNotFoundError, match=r"no\.png"):
        RecordSamples(tmp_path / "records.json", tmp_path).read(0, 16)
