"""tools/index_data.py leaves what a run would make first."""

from pathlib import Path

import pytest
from support.runs import VOCAB_SIZE, write_dataset
from support.tiny_data import CODEBOOK_SIZE
from support.tools import run_tool

FLAGS = ("--text-vocab-size", VOCAB_SIZE, "--codebook-size", CODEBOOK_SIZE, "--seq-length", 256)


def test_a_run_finds_index_and_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(tmp_path / "data")
    monkeypatch.setattr("megatron_aia.runtime.log.configure_logging", lambda: None)
    code, out, _ = run_tool("index_data", "--data-path", folder, *FLAGS)
    assert code == 0
    assert "8 generation samples" in out and "% of them padding" in out
    kept = {path.name.split("-")[0]: path.stat() for path in (folder / ".index").iterdir()}
    assert {"index.json", "table", "lengths"} <= set(kept)

    def counts_again(*arguments: object) -> None:
        raise AssertionError("the table was not taken")

    monkeypatch.setattr("megatron_aia.data.lengths._count_all", counts_again)
    assert run_tool("index_data", "--data-path", folder, *FLAGS)[:2] == (0, out)


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    code, _, error = run_tool("index_data", "--data-path", tmp_path / "nothing")
    assert code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
