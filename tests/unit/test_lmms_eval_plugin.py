"""The part of the lmms-eval plug-in that needs no lmms-eval: which answers it takes."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parents[2] / "tools" / "lmms_eval_plugin" / "megatron_aia_lmms_eval"


@pytest.fixture(scope="module")
def read_answers() -> Callable[[Path, Path], dict[str, str]]:
    spec = importlib.util.spec_from_file_location("plugin_answers", PLUGIN / "answers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[Path, Path], dict[str, str]] = module.read_answers
    return function


def write(path: Path, *lines: Any) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "requests.jsonl", {"key": "t/test/0/0"}, {"key": "t/test/1/0"})
    return tmp_path


def test_answers_are_found_by_key(read_answers: Any, folder: Path) -> None:
    first = {"key": "t/test/0/0", "answer": "two\u2028lines", "complete": True}
    write(folder / "answers.jsonl", {"key": "t/test/1/0", "answer": ""}, "", first)
    expected = {"t/test/0/0": "two\u2028lines", "t/test/1/0": ""}
    assert read_answers(folder, folder / "answers.jsonl") == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([0], r"has no answer to 't/test/1/0' \(1 of 2\)"),
        ([0, 1, 0], r"line 3: the key 't/test/0/0' stands there twice"),
        ([0, 1, 7], r"answers what was not asked: 't/test/7/0' \(1 of 2\)"),
        ([0, {"key": "t/test/1/0"}], "line 2: 'answer' is missing, or no text"),
        ([{"key": 3, "answer": "a"}], "line 1: 'key' is missing, or no text"),
        ([0, "{"], "line 2: no JSON"),
        ([0, "3"], "line 2: no JSON object"),
    ],
)
def test_other_answers_are_refused(
    lines: list[Any], expected: str, read_answers: Any, folder: Path
) -> None:
    answers = [
        {"key": f"t/test/{line}/0", "answer": "a"} if isinstance(line, int) else line
        for line in lines
    ]
    write(folder / "answers.jsonl", *answers)
    with pytest.raises(ValueError, match=expected):
        read_answers(folder, folder / "answers.jsonl")


def test_no_file(read_answers: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"answers\.jsonl is not there"):
        read_answers(folder, folder / "answers.jsonl")
