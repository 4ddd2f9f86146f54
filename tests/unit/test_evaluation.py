"""What benchmarks are given and what is read of them, by the rules of their own scorers."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.tools import run_tool

from megatron_aia.evaluation.dpg import DPGBench
from megatron_aia.evaluation.drawn import rewrite
from megatron_aia.evaluation.geneval import GenEval
from megatron_aia.evaluation.lmms import LmmsEval
from megatron_aia.evaluation.realunify import RealUnify
from megatron_aia.evaluation.references import read_references, reference_names
from megatron_aia.evaluation.result import (
    COLUMNS,
    Metric,
    Result,
    judged_metric,
    not_judged,
    read_result,
    write_result,
)

METADATA = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
    {"tag": "single_object", "include": [], "prompt": "a cow"},
    {"tag": "colors", "include": [], "prompt": "a red “cow”"},
]


def picture(seed: int, side: int = 6) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# GenEval


@pytest.fixture
def geneval(tmp_path: Path) -> GenEval:
    lines = [json.dumps(line, ensure_ascii=False) for line in METADATA]
    (tmp_path / "meta.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    benchmark = GenEval(tmp_path / "meta.jsonl", tmp_path / "out")
    benchmark.prepare(3)
    for prompt in range(3):
        for number in range(4):
            assert not benchmark.is_done(prompt, number)
            benchmark.save(prompt, number, picture(prompt * 4 + number))
            assert benchmark.is_done(prompt, number)
    return benchmark


def walk_as_geneval(folder: Path) -> list[tuple[dict[str, Any], Path]]:
    """Return the pictures that evaluate_images.py finds, with their metadata."""
    found = []
    for subfolder in sorted(os.listdir(folder)):
        if not (folder / subfolder).is_dir() or not subfolder.isdigit():
            continue
        metadata = json.load((folder / subfolder / "metadata.jsonl").open(encoding="utf-8"))
        for name in sorted(os.listdir(folder / subfolder / "samples")):
            if re.match(r"\d+\.png", name):
                found.append((metadata, folder / subfolder / "samples" / name))
    return found


def test_the_scorer_of_geneval_finds_every_picture(geneval: GenEval) -> None:
    found = walk_as_geneval(geneval.images)
    assert [metadata for metadata, _ in found] == [line for line in METADATA for _ in range(4)]
    for number, (_, path) in enumerate(found):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(picture(number)))
    assert geneval.prompts == [line["prompt"] for line in METADATA]
    assert (geneval.total, geneval.side()) == (12, 6)


def write_geneval_results(geneval: GenEval, correct: dict[str, list[bool]]) -> None:
    rows = [{"tag": tag, "correct": c, "reason": ""} for tag, cs in correct.items() for c in cs]
    geneval.results.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_geneval_is_the_mean_over_tags(geneval: GenEval) -> None:
    write_geneval_results(
        geneval, {"single_object": [True] * 6 + [False] * 2, "colors": [True, False, False, False]}
    )
    metric = geneval.read("theirs")
    assert metric == Metric(
        "GenEval", "measured", 0.5, 12, 12, "theirs", {"single_object": 0.75, "colors": 0.25}
    )
    write_geneval_results(geneval, {"single_object": [True] * 7, "colors": [False] * 4})
    assert (geneval.read("").status, geneval.read("").judged) == ("incomplete", 11)
    write_geneval_results(geneval, {})
    assert geneval.read("") == not_judged("GenEval", 12)
    write_geneval_results(geneval, {"colors": [True] * 13})
    with pytest.raises(ValueError, match="has 13 pictures, and GenEval 12"):
        geneval.read("")
    geneval.results.write_text('{"tag": "colors", "correct": 1}')
    with pytest.raises(ValueError, match="'correct' must be true or false; it is 1"):
        geneval.read("")


def test_another_file_is_not_genevals(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match="no 'tag'; give GenEval's evaluation_metadata"):
        GenEval(tmp_path / "p.jsonl", tmp_path)


# DPG-Bench


@pytest.fixture
def dpg(tmp_path: Path) -> DPGBench:
    (tmp_path / "prompts").mkdir()
    for name in ("COCOval2014000000000042", "midjourney3", "partiprompts7"):
        (tmp_path / "prompts" / f"{name}.txt").write_text(f"a prompt of {name}\n")
    benchmark = DPGBench(tmp_path / "prompts", tmp_path / "out")
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / ".left.png.tmp").touch()
    benchmark.prepare(3)
    for prompt in range(3):
        for number in range(4):
            benchmark.save(prompt, number, picture(prompt * 4 + number))
    benchmark.finish(3)
    return benchmark


def test_the_scorer_of_dpg_cuts_out_the_four_pictures(dpg: DPGBench) -> None:
    """Every file is opened, and its name without what follows the first point is the key."""
    names = sorted(os.listdir(dpg.images))
    assert [name.split(".")[0] for name in names] == sorted(
        ["COCOval2014000000000042", "midjourney3", "partiprompts7"]
    )
    side = dpg.side()
    boxes = [(0, 0, side, side), (side, 0, 2 * side, side)]
    boxes += [(0, side, side, 2 * side), (side, side, 2 * side, 2 * side)]
    for prompt, name in enumerate(names):
        grid = Image.open(dpg.images / name)
        assert grid.size == (2 * side, 2 * side)
        for number, box in enumerate(boxes):
            expected = np.asarray(picture(prompt * 4 + number))
            np.testing.assert_array_equal(np.asarray(grid.crop(box)), expected)


def dpg_text(images: list[str], end: bool = True) -> str:
    """As compute_dpg_bench.py writes its results."""
    text = "".join(f"/x, y/{name}.png, 0.5, 1.0, 1e-05, 0, 0.375\n" for name in images)
    if end:
        text += "Model: images\nL1 category scores:\n\tentity: 75.0\nL2 category scores:\n"
        text += "\tentity - whole: 80.0\nImage path: /x\nSave results to: /y\n"
        text += "DPG-Bench score: 61.25\n"
    return text


def test_dpg_reads_the_scorers_text(dpg: DPGBench) -> None:
    dpg.results.write_text(dpg_text(["a", "b", "c"]))
    parts = {"entity": 75.0, "entity - whole": 80.0}
    assert dpg.read("theirs") == Metric("DPG", "measured", 61.25, 3, 3, "theirs", parts)
    dpg.results.write_text(dpg_text(["a", "b"]))
    assert (dpg.read("").status, dpg.read("").judged) == ("incomplete", 2)
    for unfinished in (dpg_text(["a"], end=False), "", "DPG-Bench score: nan"):
        dpg.results.write_text(unfinished)
        with pytest.raises(ValueError, match="did the scorer end"):
            dpg.read("")


def test_dpg_wants_squares(dpg: DPGBench) -> None:
    dpg.save(1, 2, Image.new("RGB", (6, 8)))
    with pytest.raises(ValueError, match="squares of one size"):
        dpg.finish(3)


# RealUnify

ITEMS = [
    {"task_type": "logical_reasoning", "new_prompt": "what?", "question_list": [{"question": 1}]},
    {"task_type": "code_to_image", "new_prompt": "how?", "question_list": []},
]


def test_realunify_writes_the_users_file(tmp_path: Path) -> None:
    (tmp_path / "ueg.json").write_text(json.dumps(ITEMS))
    benchmark = RealUnify(tmp_path / "ueg.json", tmp_path, None)
    assert [question.text for question in benchmark.questions] == ["what?", "how?"]
    answers = [{"key": "00000", "answer": "a cat"}, {"key": "00001", "answer": "två hundar"}]
    benchmark.answers.write_text("\n".join(json.dumps(line) for line in answers))
    benchmark.prepare()
    for item in range(2):
        benchmark.save(item, picture(item))
    benchmark.finish()
    rows = json.loads((tmp_path / "UEG_step.json").read_text(encoding="utf-8"))
    for row, item, answer in zip(rows, ITEMS, answers, strict=True):
        assert row["response"] == answer["answer"] and Path(row["generated_image"]).is_file()
        assert {name: row[name] for name in item} == item
    judged = [{**rows[0], "score": 1}, {**rows[1], "score": 0}]
    benchmark.results.write_text(json.dumps(judged))
    parts = {"logical_reasoning": 100.0, "code_to_image": 0.0}
    assert benchmark.read("a judge") == Metric(
        "RealUnify-UEG", "measured", 50.0, 2, 2, "a judge", parts
    )
    benchmark.results.write_text(json.dumps([judged[0], rows[1]]))
    assert benchmark.read("").status == "incomplete"
    benchmark.results.write_text(json.dumps(rows))
    assert benchmark.read("") == not_judged("RealUnify-UEG", 2)
    benchmark.answers.write_text(json.dumps(answers[1]))
    with pytest.raises(ValueError, match="holds other answers than were asked for"):
        benchmark.read_responses()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is no JSON"),
        ("{}", "is no list of objects"),
        ("[]", "has no item"),
        ('[{"edit_prompt": "a"}]', "item 0: its picture is edited, which no model here does"),
        ('[{"task_type": "a"}]', "item 0: 'new_prompt' must be a text"),
    ],
)
def test_another_file_is_not_realunifys(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=expected):
        RealUnify(tmp_path / "x.json", tmp_path, None)


# lmms-eval

TASKS = ("mme", "pope_full", "mmmu_val", "mmvp", "mmbench_en_dev_static", "mmvet", "own")


def write_lmms_scores(folder: Path, judges: list[str], mme_samples: int = 2374) -> None:
    """As lmms-eval 0.7.3 writes them."""
    results = {
        "mme": {"mme_perception_score,none": 1567.5, "mme_cognition_score,none": 300.0},
        "mmmu_val": {"mmmu_acc,none": 0.41},
        "mmvp": {"mmvp_pair_accuracy,none": 0.473, "mmvp_accuracy,none": 0.7},
        "mmbench_en_dev_static": {"gpt_eval_score,none": 65.5, "submission,none": "N/A"},
        "mmvet": {"gpt_eval_score,none": 0.0},
        "own": {"alias": "own", "own_accuracy,none": 0.25, "own_accuracy_stderr,none": "N/A"},
        **{
            f"pope_{kind}": {"pope_f1_score,none": value, "pope_accuracy,none": 0.9}
            for kind, value in (("adv", 0.8), ("pop", 0.85), ("random", 0.9))
        },
    }
    counts: dict[str, Any] = {task: {"original": 900, "effective": 900} for task in results}
    counts["mme"] = {"original": 2374, "effective": mme_samples}
    counts["mmvet"] = {"original": len(judges), "effective": len(judges)}
    place = folder / "scores" / "megatron_aia"
    place.mkdir(parents=True)
    document = {"results": results, "n-samples": counts}
    (place / "20261127_results.json").write_text(json.dumps(document))
    samples = [
        {"gpt_eval_score": {"score": 0.5 if judge else 0.0, "eval_model": judge}}
        for judge in judges
    ]
    text = "".join(json.dumps(sample) + "\n" for sample in samples)
    (place / "20261127_samples_mmvet.jsonl").write_text(text)


def read_lmms(folder: Path) -> tuple[dict[str, Metric], dict[str, Any]]:
    metrics, others = LmmsEval("sh", TASKS, folder, None).read()
    return {metric.name: metric for metric in metrics}, others


def test_lmms_eval_gives_the_papers_columns(tmp_path: Path) -> None:
    write_lmms_scores(tmp_path, ["gpt-4o"] * 3)
    metrics, others = read_lmms(tmp_path)
    found = {name: (metric.status, metric.value) for name, metric in metrics.items()}
    assert found == {
        "MME-P": ("measured", 1567.5),
        "POPE": ("measured", pytest.approx(85.0)),
        "MMMU": ("measured", pytest.approx(41.0)),
        "MMVP": ("measured", pytest.approx(47.3)),
        "MMBench": ("measured", 65.5),
        "MM-Vet": ("measured", 50.0),
    }
    assert metrics["MM-Vet"].judge == "gpt-4o" and metrics["POPE"].of == 2700
    assert others == {"own": {"own_accuracy": 0.25}}


def test_mm_vet_without_a_judge_has_no_number(tmp_path: Path) -> None:
    """lmms-eval counts every answer that nobody judged as 0, and says 0.0."""
    write_lmms_scores(tmp_path, [""] * 4, mme_samples=10)
    metrics, _ = read_lmms(tmp_path)
    assert metrics["MM-Vet"] == not_judged("MM-Vet", 4)
    assert (metrics["MME-P"].status, metrics["MME-P"].judged) == ("incomplete", 10)


def test_mm_vet_of_some_judged(tmp_path: Path) -> None:
    write_lmms_scores(tmp_path, ["gpt-4o", "", "gpt-4o", ""])
    metric = read_lmms(tmp_path)[0]["MM-Vet"]
    assert (metric.status, metric.value, metric.judged, metric.of) == ("incomplete", 50.0, 2, 4)


def test_a_task_without_its_metric_is_named(tmp_path: Path) -> None:
    write_lmms_scores(tmp_path, [])
    (path,) = tmp_path.rglob("*_results.json")
    document = json.loads(path.read_text())
    del document["results"]["mmvp"]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="no mmvp_pair_accuracy of mmvp"):
        read_lmms(tmp_path)


# results and report


@pytest.mark.parametrize(
    "values",
    [
        ("GenEval", "measured", None, 3, 3, ""),
        ("GenEval", "not judged", 0.5, 0, 3, ""),
        ("GenEval", "measured", 0.5, 0, 3, ""),
        ("GenEval", "measured", 0.5, 2, 3, ""),
        ("GenEval", "incomplete", float("nan"), 2, 3, ""),
        ("GenEval", "guessed", 0.5, 3, 3, ""),
        ("GenEvil", "measured", 0.5, 3, 3, ""),
    ],
)
def test_a_number_without_a_judge_cannot_be_written(values: Any) -> None:
    with pytest.raises(ValueError):
        Metric(*values)


def test_a_result_is_read_back(tmp_path: Path) -> None:
    metric = judged_metric("GenEval", 0.5, 3, 4, "theirs", {"colors": 0.25})
    result = Result("geneval", (metric, not_judged("DPG", 7)), {"checkpoint": "a", "seed": 3})
    write_result(tmp_path, result)
    assert read_result(tmp_path) == result
    text = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(text.replace('"not judged"', '"measured"'))
    with pytest.raises(ValueError, match="cannot be read: DPG: a value needs a judge"):
        read_result(tmp_path)


def test_references_are_whole_and_name_their_source() -> None:
    assert {"aia_v2", "orion", "torchumm", "unifork"} <= set(reference_names())
    rows = {name: read_references(name) for name in reference_names()}
    for references in rows.values():
        assert references
        for reference in references:
            assert reference.source and reference.conditions and reference.values
            assert reference.values.keys() <= set(COLUMNS)
    aia = {row.name: row.values for row in rows["aia_v2"]}
    assert len(aia) == 25 and all(len(values) == 8 for values in aia.values())
    assert aia["Janus-Pro 7B + AIA"] == dict(
        zip(COLUMNS[:8], (42.1, 75.6, 48.0, 49.8, 89.8, 1656.4, 0.81, 84.49), strict=True)
    )
    assert aia["Emu3 + AIA"]["GenEval"] == 0.67


def write_results(root: Path) -> list[str]:
    """Write two folders of one checkpoint, and one of another; return the report's arguments."""
    whole = judged_metric("GenEval", 0.6789, 2212, 2212, "theirs", {})
    part = judged_metric("DPG", 71.0, 12, 1065, "theirs", {})
    for name, metrics, checkpoint in (
        ("geneval", (whole,), "ours"),
        ("lmms", (not_judged("MM-Vet", 218),), "ours"),
        ("dpg", (part,), "other"),
    ):
        (root / name).mkdir()
        conditions = {"checkpoint": checkpoint, "prompts": "original"}
        write_result(root / name, Result(name, metrics, conditions))
    return [f"ours={root / 'geneval'},{root / 'lmms'}", f"other={root / 'dpg'}"]


def test_the_report(tmp_path: Path) -> None:
    arguments = write_results(tmp_path)
    plot = ("--plot", tmp_path / "bars.png")
    code, out, error = run_tool("benchmark_report", *arguments, "--reference", "aia_v2", *plot)
    assert code == 0, error
    header, ours, other, *_ = out.splitlines()
    assert header.split() == [
        "MMMU",
        "MMBench",
        "MMVP",
        "MM-Vet",
        "POPE",
        "MME-P",
        "GenEval",
        "DPG",
    ]
    assert ours.split() == ["ours", "-", "-", "-", "not", "judged", "-", "-", "0.68", "-"]
    assert other.endswith("71.00 (incomplete, 12 of 1065)")
    assert "GenEval of ours; judge: theirs, prompts: original" in out
    assert "AIA, version 2, Table 3" in out
    with Image.open(tmp_path / "bars.png") as bars:
        assert min(bars.size) > 200
    _, markdown, _ = run_tool("benchmark_report", *arguments, "--markdown")
    assert markdown.splitlines()[:2] == ["|  | MM-Vet | GenEval | DPG |", "|---|---|---|---|"]


def test_the_report_refuses(tmp_path: Path) -> None:
    arguments = write_results(tmp_path)
    both = f"x={tmp_path / 'geneval'},{tmp_path / 'dpg'}"
    for given, expected in (
        ((), "nothing to show"),
        (("x",), "write NAME=DIR"),
        ((f"x={tmp_path}",), "has no result.json"),
        ((*arguments, "--reference", "aia_v9"), "--reference aia_v9 is unknown; use one of aia_v2"),
        ((both,), "results of several checkpoints"),
        ((arguments[1], "--plot", tmp_path / "b.png"), "nothing is judged as a whole"),
    ):
        code, _, error = run_tool("benchmark_report", *given)
        assert code == 2 and expected in error and error.count("\n") == 1


def test_rewritten_prompts(tmp_path: Path) -> None:
    assert rewrite(["a", "b"], None) == (["a", "b"], "original")
    (tmp_path / "r.json").write_text('{"a": "a long a", "b": "a long b"}')
    prompts, said = rewrite(["b", "a"], tmp_path / "r.json")
    assert prompts == ["a long b", "a long a"]
    assert re.fullmatch(r"rewritten \(r\.json [0-9a-f]{12}\)", said)
    for text, expected in (("[", "no JSON"), ("[]", "no object"), ('{"a": ""}', "no text for 'a'")):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(ValueError, match=expected):
            rewrite(["a"], tmp_path / "r.json")
