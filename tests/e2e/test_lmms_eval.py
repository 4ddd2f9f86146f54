"""Evaluation by lmms-eval itself, in an environment of its own, on a task that lies here."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.tiny_runs import run_tool_on, tiny_run
from support.tools import Result

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LMMS_EVAL = ROOT / ".venv-lmms-eval" / "bin" / "lmms-eval"
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
TASK = """
task: colors
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {folder}/colors.parquet}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 6, do_sample: false}}
process_results: !function utils.process_results
metric_list:
- {{metric: accuracy_, aggregation: !function utils.mean, higher_is_better: true}}
"""
UTILS = """
import io
from PIL import Image

def doc_to_visual(doc):
    return [Image.open(io.BytesIO(doc["image"]["bytes"]))]

def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def process_results(doc, results):
    return {"accuracy_": float(results[0].strip() == doc["answer"])}

def mean(values):
    return sum(values) / len(values)
"""


@pytest.fixture(scope="module", autouse=True)
def offline() -> Any:
    if not LMMS_EVAL.is_file():
        pytest.fail(f"{LMMS_EVAL} is missing; make test-all installs it")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        yield


def write_task(folder: Path, answers: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = []
    for (name, color), answer in zip(COLORS.items(), answers, strict=True):
        file = io.BytesIO()
        Image.new("RGB", (40, 30), color).save(file, "PNG")
        image = {"bytes": file.getvalue(), "path": f"{name}.png"}
        rows.append({"question": f"Is it {name}?", "answer": answer, "image": image})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "colors.parquet")
    (folder / "colors.yaml").write_text(TASK.format(folder=folder))
    (folder / "utils.py").write_text(UTILS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("janus_pro"), "janus_pro")


def start(world_size: int, run: Path, task: Path, output: Path) -> Result:
    command = f"{LMMS_EVAL} --include_path {task}"
    flags = ("--load", run, "--output", output, "--benchmark", "lmms", "--lmms-eval", command)
    return run_tool_on(world_size, "evaluate", *flags, "--tasks", "colors")


def evaluate(world_size: int, run: Path, task: Path, output: Path) -> dict[str, Any]:
    code, _, error = start(world_size, run, task, output)
    assert code == 0, error
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return result


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_ask_answer_score(run: Path, tmp_path: Path) -> None:
    task = tmp_path / "task"
    task.mkdir()
    write_task(task, ["?", "?", "?"])
    first = evaluate(1, run, task, tmp_path / "first")
    assert first["conditions"]["other_tasks"] == {"colors": {"accuracy_": 0.0}}
    asked = lines(tmp_path / "first" / "ask" / "requests.jsonl")
    assert [question["text"] for question in asked] == [f"Is it {name}?" for name in COLORS]
    for question, color in zip(asked, COLORS.values(), strict=True):
        assert question["options"] == {"max_new_tokens": 6, "do_sample": False}
        (name,) = question["images"]
        image = Image.open(tmp_path / "first" / "ask" / name)
        assert image.size == (40, 30) and image.getpixel((3, 3)) == color
    answers = [answer["answer"] for answer in lines(tmp_path / "first" / "answers.jsonl")]
    # Two of the three answers become right: lmms-eval must have scored what the model said.
    write_task(task, [answers[0].strip(), "?", answers[2].strip()])
    second = evaluate(2, run, task, tmp_path / "second")
    assert second["conditions"]["other_tasks"]["colors"]["accuracy_"] == pytest.approx(2 / 3)
    assert [a["answer"] for a in lines(tmp_path / "second" / "answers.jsonl")] == answers


def test_what_lmms_eval_swallows_is_an_error(run: Path, tmp_path: Path) -> None:
    """lmms-eval ends with exit code 0, whatever happens."""
    task = tmp_path / "task"
    task.mkdir()
    write_task(task, ["?", "?", "?"])
    evaluate(1, run, task, tmp_path / "a")
    answers = tmp_path / "a" / "answers.jsonl"
    first = answers.read_text().splitlines()[0]
    answers.write_text(answers.read_text() + first + "\n")
    code, _, error = start(1, run, task, tmp_path / "a")
    assert code == 2 and error.count("\n") == 1, error
    assert "lmms-eval has not finished" in error and "stands there twice" in error
    (task / "utils.py").write_text(UTILS.replace('doc["question"]', 'doc["query"]'))
    code, _, error = start(1, run, task, tmp_path / "b")
    assert code == 2 and "lmms-eval has not finished" in error and "query" in error
