"""Stands for lmms-eval with the plug-in: asks two questions, and scores by comparing texts."""

import json
import os
import sys
from pathlib import Path

from PIL import Image

QUESTIONS = ("abc", "bad cafe")


def main() -> None:
    flags = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
    model = dict(part.split("=", 1) for part in flags["--model_args"].split(","))
    assert flags["--model"] == "megatron_aia" and flags["--tasks"] == "mmvet,own"
    assert not {"RANK", "WORLD_SIZE"} & os.environ.keys()
    folder = Path(model["folder"])
    keys = [f"own/test/{number}/0" for number in range(len(QUESTIONS))]
    if model["mode"] == "ask":
        assert "--predict_only" in sys.argv
        (folder / "images").mkdir()
        Image.new("RGB", (20, 30), "red").save(folder / "images" / "a.png")
        lines = [
            {"key": key, "text": text, "images": ["images/a.png"], "options": {"do_sample": False}}
            for key, text in zip(keys, QUESTIONS, strict=True)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "requests.jsonl").write_text(text)
        place = Path(flags["--output_path"]) / "megatron_aia"
        place.mkdir(parents=True)
        (place / "now_results.json").write_text("{}")
        return
    answers = [json.loads(line) for line in Path(model["answers"]).read_text().splitlines()]
    assert [answer["key"] for answer in answers] == keys
    place = Path(flags["--output_path"]) / "megatron_aia"
    place.mkdir(parents=True)
    results = {"own": {"own_accuracy,none": 0.5}, "mmvet": {"gpt_eval_score,none": 0.0}}
    counts = {task: {"original": 2, "effective": 2} for task in results}
    document = {"results": results, "n-samples": counts}
    (place / "now_results.json").write_text(json.dumps(document))
    sample = json.dumps({"gpt_eval_score": {"score": 0.0, "eval_model": ""}})
    (place / "now_samples_mmvet.jsonl").write_text(f"{sample}\n{sample}\n")


if __name__ == "__main__":
    main()
