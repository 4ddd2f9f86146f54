"""tools/chat.py as a user starts it: a file of questions, and a terminal."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image
from support.spawn import spawn
from support.tiny_runs import run_tool_on, tiny_run

from megatron_aia.generation import answers as answers_module
from megatron_aia.generation.answering import Answer
from megatron_aia.generation.command import chat
from megatron_aia.generation.options import ChatOptions

LAYOUTS = {
    "DP 2": (2, ()),
    "TP 2": (2, ("--tensor-model-parallel-size", 2)),
    "PP 2": (2, ("--pipeline-model-parallel-size", 2)),
}
FAMILIES = ["emu3", "janus_pro"]
FLAGS = ("--max-new-tokens", 12, "--batch-size", 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tiny_run(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("questions")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(root / name)
    asked: list[dict[str, Any]] = [
        {"key": "t/0", "text": "abc"},
        {"key": "t/1", "text": "what cab", "images": ["a.png"]},
        {"key": "t/2", "text": "bad <image> cafe <image> d", "images": ["a.png", "b.png"]},
        {"key": "t/3", "text": "a", "options": {"max_new_tokens": 3, "do_sample": False}},
        {"key": "t/4", "text": "d", "options": {"do_sample": True, "temperature": 0.7}},
    ]
    (root / "ask.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    return root / "ask.jsonl"


def ask(world_size: int, run: Path, questions: Path, answers: Path, *flags: object) -> str:
    files = ("--ask", questions, "--answers", answers)
    code, _, error = run_tool_on(world_size, "chat", "--load", run, *files, *FLAGS, *flags)
    assert code == 0, error
    assert not list(answers.parent.glob(".*")), "parts are removed"
    return answers.read_text()


@pytest.fixture(scope="module")
def answered(
    runs: dict[str, Path], questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    root = tmp_path_factory.mktemp("answers")
    return {f: ask(1, runs[f], questions, root / f"{f}.jsonl") for f in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_question_has_an_answer(family: str, answered: dict[str, str]) -> None:
    lines = [json.loads(line) for line in answered[family].splitlines()]
    assert [line["key"] for line in lines] == [f"t/{i}" for i in range(5)]
    assert len({line["answer"] for line in lines}) > 3
    assert all(line.keys() == {"key", "answer", "complete"} for line in lines)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_answers_in_any_layout(
    family: str,
    name: str,
    runs: dict[str, Path],
    questions: Path,
    answered: dict[str, str],
    tmp_path: Path,
) -> None:
    world_size, flags = LAYOUTS[name]
    found = ask(world_size, runs[family], questions, tmp_path / "a.jsonl", *flags)
    assert found == answered[family]


def test_pictures_and_system_prompt_count(
    runs: dict[str, Path], questions: Path, answered: dict[str, str], tmp_path: Path
) -> None:
    for family in FAMILIES:
        found = ask(1, runs[family], questions, tmp_path / family, "--system-prompt", "fed")
        assert found != answered[family]
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((questions.parent / "b.png").read_bytes())
    (tmp_path / "q").write_text(json.dumps(lines[1]) + "\n")
    other = ask(1, runs["janus_pro"], tmp_path / "q", tmp_path / "other")
    before = json.loads(answered["janus_pro"].splitlines()[1])
    assert json.loads(other)["answer"] != before["answer"]


class _Stopped(Exception):
    pass


def stop_after_one_batch(flags: tuple[object, ...]) -> None:
    """Stand for a kill: nothing is cleaned up."""
    save, saved = answers_module.AnswersFile.save, []

    def save_once(self: Any, batch: int, answers: list[Answer]) -> None:
        if saved:
            raise _Stopped
        saved.append(save(self, batch, answers))

    answers_module.AnswersFile.save = save_once  # type: ignore[method-assign, assignment]
    from support.tools import run_tool

    with pytest.raises(_Stopped):
        run_tool("chat", *flags)


def test_a_stopped_command_goes_on(
    runs: dict[str, Path], questions: Path, answered: dict[str, str], tmp_path: Path
) -> None:
    flags = ("--load", runs["emu3"], "--ask", questions, "--answers", tmp_path / "a", *FLAGS)
    spawn(stop_after_one_batch, 1, flags)
    (part,) = tmp_path.glob(".a.*.parts/*.jsonl")
    assert part.read_text() == "".join(answered["emu3"].splitlines(keepends=True)[:2])
    part.write_text(part.read_text().replace('"complete"', '"seen"'))
    found = ask(1, runs["emu3"], questions, tmp_path / "a")
    assert found.replace('"seen"', '"complete"') == answered["emu3"]
    assert found.count('"seen"') == 2


class Script:
    """A terminal whose user types these lines."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.shown: list[str] = []

    def read(self) -> str | None:
        assert not self.shown or self.shown[-1].endswith("> ")
        self.shown.append("")
        return self.lines.pop(0) if self.lines else None

    def write(self, text: str) -> None:
        if not self.shown:
            assert text == "> "
        else:
            self.shown[-1] += text


def talk(options: ChatOptions, world_size: int, *lines: str) -> list[str]:
    script = Script(*lines)
    chat(options, world_size, script)
    if dist.is_initialized() and dist.get_rank():
        assert not script.shown
    return [text.removesuffix("> ") for text in script.shown]


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation(
    family: str,
    sizes: tuple[int, int],
    runs: dict[str, Path],
    questions: Path,
    answered: dict[str, str],
) -> None:
    world_size = sizes[0] * sizes[1]
    options = ChatOptions(
        load=runs[family],
        max_new_tokens=12,
        tensor_model_parallel_size=sizes[0],
        pipeline_model_parallel_size=sizes[1],
    )
    picture = questions.parent / "a.png"
    lines = [
        "/help\n",
        "/image /nowhere\n",
        "bad <image>\n",
        "abc\n",
        "/reset\n",
        f"/image {picture}\n",
        "\n",
        "what cab\n",
        "a\n",
        "b" * 300,
    ]
    shown = spawn(talk, world_size, options, world_size, *lines)
    expected = [json.loads(line)["answer"] for line in answered[family].splitlines()]
    assert "/reset begins anew" in shown[0]
    assert shown[1] == "no file '/nowhere'\n"
    assert "1 <image> tags and 0 pictures" in shown[2]
    assert shown[3].strip() == expected[0]
    assert shown[7].strip() == expected[1]
    # The answer to the next question depends on what was said before.
    alone = spawn(talk, 1, ChatOptions(load=runs[family], max_new_tokens=12), 1, "a")
    assert shown[8] != alone[0]
    assert "leave no room for an answer" in shown[9]


BAD = {
    '{"key": "a"}': "line 1: 'text' must be a text",
    '{"key": "a", "text": "b", "image": "c"}': "line 1: 'image' is not known",
    '{"key": "a", "text": "b", "images": ["c.png"]}': "c.png is not there",
    '{"key": "a", "text": "b", "images": "c.png"}': "'images' must be a list of paths",
    '{"key": "a", "text": "b", "options": {"num_beams": 4}}': "'num_beams' must be 1",
    '{"key": "a", "text": "b", "options": {"best_of": 4}}': "'best_of' is not known",
    '{"key": "a", "text": "<image>"}': "1 <image> tags and 0 pictures",
    '{"key": "a", "text": "b"}\n{"key": "a", "text": "c"}': "line 2: the key 'a' stands there",
    json.dumps({"key": "long", "text": "c" * 400}): "question long: ",
    "": "has no question",
}


@pytest.mark.parametrize("line", BAD)
def test_a_wrong_question_is_named(line: str, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(line)
    flags = ("--ask", tmp_path / "q.jsonl", "--answers", tmp_path / "a")
    code, _, error = run_tool_on(1, "chat", "--load", runs["janus_pro"], *flags)
    assert code == 2 and BAD[line] in error and error.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_flags_that_do_not_fit(runs: dict[str, Path], questions: Path, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    for flags, expected in (
        (("--ask", questions), "--ask and --answers go together"),
        (("--image", "/nowhere"), "--image /nowhere is not a file"),
        (("--ask", questions, "--answers", tmp_path / "there"), "exists; choose another"),
        (("--ask", "/nowhere", "--answers", tmp_path / "a"), "/nowhere cannot be read"),
    ):
        code, _, error = run_tool_on(1, "chat", "--load", runs["janus_pro"], *flags)
        assert code == 2 and expected in error and error.count("\n") == 1


def test_a_damaged_picture_ends_the_command(
    runs: dict[str, Path], questions: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes((questions.parent / "a.png").read_bytes()[:-300])
    line = {"key": "t/1", "text": "what", "images": ["a.png"]}
    (tmp_path / "q").write_text(json.dumps(line))
    flags = ("--ask", tmp_path / "q", "--answers", tmp_path / "a", "--load", runs["janus_pro"])
    code, _, error = run_tool_on(2, "chat", *flags, "--tensor-model-parallel-size", 2)
    assert code == 2 and "a.png is no picture that can be read" in error
