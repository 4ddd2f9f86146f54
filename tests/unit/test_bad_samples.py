"""One table of samples that cannot be used: the index, the reader and the verifier refuse each."""

import tracemalloc
from pathlib import Path

import pytest
from bad_samples import BAD_CODES, BAD_DESCRIPTIONS, BAD_SAMPLES
from toy_data import CODEBOOK_SIZE, toy_sample, write_shard

from megatron_aia.shards.codes import decode_codes
from megatron_aia.shards.index import open_index
from megatron_aia.shards.problems import Problem
from megatron_aia.shards.raw_sample import CorruptSampleError
from megatron_aia.shards.reader import CodesEntry, parse_description
from megatron_aia.shards.verify import VerifyOptions, verify_folder

MEGABYTE = 1 << 20
REMEDY = "rebuild or delete the shard"


def problems_of(folder: Path) -> list[Problem]:
    options = VerifyOptions((str(folder),), num_workers=0, codebook_size=CODEBOOK_SIZE)
    return verify_folder(str(folder), options).problems


@pytest.mark.parametrize(("sample", "words"), BAD_SAMPLES, ids=[words for _, words in BAD_SAMPLES])
def test_index_and_verifier_refuse(tmp_path: Path, sample: dict, words: str) -> None:
    write_shard(tmp_path / "a.tar", [toy_sample("good", "text", "a", "b"), sample])
    with pytest.raises(ValueError) as caught:
        open_index(tmp_path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 1000
    assert "a.tar: sample bad" in message and words in message and REMEDY in message
    (problem,) = problems_of(tmp_path)
    assert problem.key == "bad" and problem.text in message


@pytest.mark.parametrize(
    ("data", "words"), BAD_DESCRIPTIONS, ids=[words for _, words in BAD_DESCRIPTIONS]
)
def test_a_description_is_refused_alone(data: bytes, words: str) -> None:
    with pytest.raises(CorruptSampleError) as caught:
        parse_description(data)
    assert words in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(("content", "words"), BAD_CODES)
def test_reader_and_verifier_refuse(tmp_path: Path, content: bytes, words: str) -> None:
    """An array that lies about its size takes no memory."""
    tracemalloc.start()
    with pytest.raises(CorruptSampleError, match=r"emu3\.npy"):
        decode_codes(content, CodesEntry("emu3.npy", 2, 3), CODEBOOK_SIZE)
    assert tracemalloc.get_traced_memory()[1] < 4 * MEGABYTE
    tracemalloc.stop()
    sample = {**toy_sample("bad", "understanding", "<image>q", "a"), "emu3.npy": content}
    write_shard(tmp_path / "a.tar", [sample])
    with pytest.raises(CorruptSampleError) as caught:
        open_index(tmp_path).read(0, CODEBOOK_SIZE)
    for word in ("a.tar: sample bad", "emu3.npy", words, REMEDY):
        assert word in str(caught.value)
    (problem,) = problems_of(tmp_path)
    assert (problem.key, problem.kind) == ("bad", "codes") and words in problem.text
