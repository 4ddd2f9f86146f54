"""tools/evaluate.py as a user starts it, with scorers that stand for the benchmarks' own."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.tiny_runs import run_tool_on, tiny_run
from support.tools import Result, run_tool

SUPPORT = Path(__file__).parents[1] / "support"
METADATA = [
    {"tag": "single_object", "include": [], "prompt": "abc"},
    {"tag": "colors", "include": [], "prompt": "a fed cab"},
    {"tag": "colors", "include": [], "prompt": "dead beef"},
]
SCORER = """
import json, pathlib, sys
images, results, side = sys.argv[1:]
rows = []
for folder in sorted(pathlib.Path(images).iterdir()):
    tag = json.load(open(folder / "metadata.jsonl"))["tag"]
    for picture in sorted((folder / "samples").iterdir()):
        rows.append({"tag": tag, "correct": picture.name == "00000.png", "side": int(side)})
open(results, "w").write("".join(json.dumps(row) + "\\n" for row in rows))
print("scored")
"""
MORE = ("--temperature", 6.0, "--batch-size", 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("janus_pro"), "janus_pro")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "benchmark"
    (root / "prompts").mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in METADATA)
    (root / "metadata.jsonl").write_text(text)
    for number, line in enumerate(METADATA):
        (root / "prompts" / f"p{number}.txt").write_text(str(line["prompt"]))
    (root / "scorer.py").write_text(SCORER)
    items = [
        {"task_type": "t", "new_prompt": text, "question_list": []} for text in ("abc", "fed", "c")
    ]
    (root / "UEG_step.json").write_text(json.dumps(items))
    return root


def evaluate(
    world_size: int, run: Path, output: Path, benchmark: str, *flags: object
) -> dict[str, Any]:
    usual = ("--load", run, "--output", output, "--benchmark", benchmark, *MORE)
    code, _, error = run_tool_on(world_size, "evaluate", *usual, *flags)
    assert code == 0, error
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return result


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*.png")}


def test_geneval_from_pictures_to_the_report(run: Path, data: Path, tmp_path: Path) -> None:
    metadata = ("--data", data / "metadata.jsonl")
    result = evaluate(1, run, tmp_path / "a", "geneval", *metadata)
    assert result["metrics"][0] == {
        **{"name": "GenEval", "status": "not judged", "value": None, "judged": 0, "of": 12},
        **{"judge": "", "parts": {}},
    }
    assert len(pictures(tmp_path / "a")) == 12
    command = f"{sys.executable} {data / 'scorer.py'} {{images}} {{results}} {{side}}"
    # Nothing is left to draw: no model is needed.
    gone = tmp_path / "gone"
    result = evaluate(1, gone, tmp_path / "a", "geneval", *metadata, "--score-command", command)
    (metric,) = result["metrics"]
    assert (metric["status"], metric["value"], metric["judge"]) == ("measured", 0.25, command)
    assert metric["parts"] == {"single_object": 0.25, "colors": 0.25}
    assert result["conditions"]["prompts"] == "original"
    assert '"side": 16' in (tmp_path / "a" / "results.jsonl").read_text()
    code, out, _ = run_tool("benchmark_report", f"ours={tmp_path / 'a'}")
    assert code == 0 and out.splitlines()[1].split() == ["ours", "0.25"]
    (tmp_path / "theirs.jsonl").write_text('{"tag": "colors", "correct": true}\n')
    more = ("--results", tmp_path / "theirs.jsonl")
    (metric,) = evaluate(1, gone, tmp_path / "a", "geneval", *metadata, *more)["metrics"]
    assert (metric["status"], metric["judged"], metric["value"]) == ("incomplete", 1, 1.0)


@pytest.mark.parametrize("flags", [(), ("--tensor-model-parallel-size", 2)])
def test_the_same_pictures_by_two_processes(
    flags: tuple[object, ...], run: Path, data: Path, tmp_path: Path
) -> None:
    for benchmark, given in (("geneval", data / "metadata.jsonl"), ("dpg", data / "prompts")):
        folders = [tmp_path / f"{benchmark}{number}" for number in (1, 2)]
        evaluate(1, run, folders[0], benchmark, "--data", given)
        evaluate(2, run, folders[1], benchmark, "--data", given, *flags)
        assert pictures(folders[0]) == pictures(folders[1])


def test_dpg_and_a_limit(run: Path, data: Path, tmp_path: Path) -> None:
    flags = ("--data", data / "prompts", "--limit", 2)
    result = evaluate(1, run, tmp_path / "a", "dpg", *flags)
    images = sorted((tmp_path / "a" / "images").iterdir())
    assert [image.name for image in images] == ["p0.png", "p1.png"]
    assert Image.open(images[0]).size == (32, 32)
    assert result["metrics"][0]["of"] == 3
    text = "x.png, 1.0, 0.5\ny.png, 0.5, 0.5\nDPG-Bench score: 62.5\n"
    scorer = f"printf '{text}' > {{results}}"
    result = evaluate(1, run, tmp_path / "a", "dpg", *flags, "--score-command", scorer)
    metric = result["metrics"][0]
    assert (metric["status"], metric["value"], metric["judged"]) == ("incomplete", 62.5, 2)


def test_rewritten_prompts_are_drawn_and_said(run: Path, data: Path, tmp_path: Path) -> None:
    table = {str(line["prompt"]): f"{line['prompt']} and more" for line in METADATA}
    (data / "r.json").write_text(json.dumps(table))
    metadata = ("--data", data / "metadata.jsonl")
    evaluate(1, run, tmp_path / "a", "geneval", *metadata)
    rewritten = ("--rewritten-prompts", data / "r.json")
    result = evaluate(1, run, tmp_path / "b", "geneval", *metadata, *rewritten)
    assert result["conditions"]["prompts"].startswith("rewritten (r.json ")
    assert pictures(tmp_path / "a") != pictures(tmp_path / "b")
    written = tmp_path / "b" / "images" / "00001" / "metadata.jsonl"
    assert json.loads(written.read_text()) == METADATA[1], "untouched"


@pytest.mark.parametrize("world_size", [1, 2])
def test_realunify_answers_then_draws(
    world_size: int, run: Path, data: Path, tmp_path: Path
) -> None:
    flags = ("--data", data / "UEG_step.json", "--max-new-tokens", 5)
    result = evaluate(world_size, run, tmp_path / "a", "realunify", *flags)
    assert result["metrics"][0]["status"] == "not judged"
    rows = json.loads((tmp_path / "a" / "UEG_step.json").read_text())
    assert len({row["response"] for row in rows}) == 3
    # What is drawn is the answer: a picture of its words is the same picture.
    prompt = ("--prompt", rows[1]["response"], "--num-images", 1, *MORE)
    generate = ("--load", run, "--output", tmp_path / "alone", *prompt)
    code, _, error = run_tool_on(1, "generate", *generate)
    assert code == 0, error
    (alone,) = pictures(tmp_path / "alone" / "pictures").values()
    assert Path(rows[1]["generated_image"]).read_bytes() == alone
    for row, score in zip(rows, (1, 0, 1), strict=True):
        row["score"] = score
    (tmp_path / "judged.json").write_text(json.dumps(rows))
    judged = ("--results", tmp_path / "judged.json")
    (metric,) = evaluate(1, run, tmp_path / "a", "realunify", *flags, *judged)["metrics"]
    assert (metric["status"], metric["value"]) == ("measured", pytest.approx(200 / 3))


@pytest.mark.parametrize("world_size", [1, 2])
def test_lmms_eval_asks_and_scores(world_size: int, run: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} {SUPPORT / 'fake_lmms_eval.py'}"
    flags = ("--lmms-eval", command, "--tasks", "mmvet", "own")
    result = evaluate(world_size, run, tmp_path / "a", "lmms", *flags)
    assert result["metrics"][0]["status"] == "not judged"
    assert result["conditions"]["other_tasks"] == {"own": {"own_accuracy": 0.5}}
    assert result["conditions"]["max_new_tokens"] == 512
    answers = (tmp_path / "a" / "answers.jsonl").read_text()
    (tmp_path / "a" / "result.json").unlink()
    # Only scored again: nothing is answered twice.
    evaluate(1, tmp_path / "gone", tmp_path / "a", "lmms", *flags)
    assert (tmp_path / "a" / "answers.jsonl").read_text() == answers


def failing(run: Path, output: Path, *flags: object) -> Result:
    return run_tool_on(1, "evaluate", "--load", run, "--output", output, *MORE, *flags)


def test_mistakes_are_one_line(run: Path, data: Path, tmp_path: Path) -> None:
    geneval = ("--benchmark", "geneval", "--data", data / "metadata.jsonl")
    lmms = ("--benchmark", "lmms", "--tasks", "mmvet", "own", "--lmms-eval")
    for number, (flags, expected) in enumerate(
        (
            (("--benchmark", "geneval"), "--benchmark geneval needs --data"),
            (("--benchmark", "fid"), "--benchmark must be one of geneval, dpg, realunify, lmms"),
            ((*geneval, "--score-command", "echo no mask; exit 3"), "exit code 3 (no mask); see"),
            ((*geneval, "--score-command", "true"), "--score-command wrote no"),
            ((*geneval, "--score-command", "echo x > {results}"), "results.jsonl, line 1: no JSON"),
            (("--benchmark", "dpg", "--data", data), "has no *.txt"),
            ((*lmms, "/nowhere/lmms-eval"), "--lmms-eval /nowhere/lmms-eval is not there"),
            ((*lmms, "sh -c 'echo no plug-in; exit 2'"), "exit code 2 (no plug-in)"),
            ((*lmms, "true"), "lmms-eval has not finished (it printed nothing); see"),
            ((*lmms, "true", "--data", data), "--data has no meaning with --benchmark lmms"),
            ((*geneval, "--load", "/nowhere"), "--load /nowhere is not a folder"),
        )
    ):
        code, _, error = failing(run, tmp_path / str(number), *flags)
        assert code == 2 and expected in error and error.count("\n") == 1, (flags, error)
        assert not (tmp_path / str(number) / "result.json").exists()


def test_a_folder_of_other_settings(run: Path, data: Path, tmp_path: Path) -> None:
    flags = ("--benchmark", "geneval", "--data", data / "metadata.jsonl")
    assert failing(run, tmp_path / "a", *flags, "--limit", 1)[0] == 0
    for more, expected in (
        (("--limit", 1, "--top-k", 5), "holds results of top_k 0, not 5"),
        (("--limit", 1, "--seed", 5), "holds results of seed 42, not 5"),
        (("--limit", 2), "holds results of other prompts"),
    ):
        code, _, error = failing(run, tmp_path / "a", *flags, *more)
        assert code == 2 and expected in error
    assert failing(run, tmp_path / "a", *flags, "--limit", 1, "--guidance-scale", 5)[0] == 0
