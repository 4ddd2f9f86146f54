"""Understanding by lmms-eval, which runs in an environment of its own: ask, answer, score.

::

    ask/requests.jsonl, ask/images/   the questions, as the plug-in wrote them
    answers.jsonl                     what the checkpoint answered
    scores/                           what lmms-eval made of it
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_aia.evaluation.result import Metric, judged_metric, not_judged

_OF_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
"""By these lmms-eval would share its questions with processes that do not ask."""
_RULES = "lmms-eval's rules"
_RESULTS = "*_results.json"
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class _Column:
    column: str
    metric: str
    scale: float = 1.0
    tasks: tuple[str, ...] = ()
    """Whose mean it is; none: of the task itself."""


_COLUMNS = {
    "mme": _Column("MME-P", "mme_perception_score"),
    "pope_full": _Column("POPE", "pope_f1_score", 100.0, ("pope_adv", "pope_pop", "pope_random")),
    "mmmu_val": _Column("MMMU", "mmmu_acc", 100.0),
    "mmvp": _Column("MMVP", "mmvp_pair_accuracy", 100.0),
    "mmbench_en_dev_static": _Column("MMBench", "gpt_eval_score"),
}
_MM_VET = "mmvet"


class LmmsEval:
    """lmms-eval and the files that are exchanged with it.

    Args:
        command: of lmms-eval, with arguments that belong to every call.
        tasks: of lmms-eval.
        folder: of the evaluation.
        limit: questions of a task; None: all.
    """

    def __init__(self, command: str, tasks: Sequence[str], folder: Path, limit: int | None) -> None:
        self._command, self._tasks, self._limit = shlex.split(command), tasks, limit
        self._folder = folder
        self.questions = folder / "ask" / "requests.jsonl"
        self.answers = folder / "answers.jsonl"
        if not self._command or shutil.which(self._command[0]) is None:
            raise ValueError(
                f"--lmms-eval {command} is not there; install lmms-eval and tools/lmms_eval_plugin "
                "in an environment of their own, and pass its bin/lmms-eval"
            )

    def ask(self) -> None:
        """Have the questions written, if they are not there.

        Raises:
            ValueError: lmms-eval fails, or asks nothing.
        """
        if self.questions.is_file():
            return
        # It may be killed half way: the folder gets its name when it is whole.
        begun = self._folder / "ask.begun"
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        # Absolute: the command may change its folder.
        self._run("asked", f"mode=ask,folder={begun.absolute()}", "--predict_only")
        if not (begun / "requests.jsonl").is_file():
            raise ValueError(f"lmms-eval asked nothing for --tasks {' '.join(self._tasks)}")
        begun.rename(self._folder / "ask")

    def score(self) -> None:
        """Have the answers scored.

        Raises:
            ValueError: lmms-eval fails.
        """
        folder, answers = self.questions.parent.absolute(), self.answers.absolute()
        self._run("scores", f"mode=score,folder={folder},answers={answers}")

    def _run(self, name: str, model_args: str, *flags: str) -> None:
        output, log = self._folder / name, self._folder / f"lmms_eval_{name}.log"
        shutil.rmtree(output, ignore_errors=True)
        command = [*self._command, "--model", "megatron_aia", "--model_args", model_args]
        command += ["--tasks", ",".join(self._tasks), "--batch_size", "1", "--log_samples"]
        command += ["--output_path", str(output)]
        command += [*flags, *([] if self._limit is None else ["--limit", str(self._limit)])]
        environment = {k: v for k, v in os.environ.items() if k not in _OF_TORCHRUN}
        run_logged(command, log, "lmms-eval", environment)
        # It ends with exit code 0 whatever happens.
        if not list(output.rglob(_RESULTS)):
            raise ValueError(f"lmms-eval has not finished ({last_line(log)}); see {log}")

    def read(self) -> tuple[list[Metric], dict[str, Any]]:
        """Return the metrics that have a column, and all numbers of the other tasks.

        Raises:
            ValueError: lmms-eval has written no result of a task.
        """
        files = sorted((self._folder / "scores").rglob(_RESULTS))
        document = json.loads(files[-1].read_text(encoding="utf-8"))
        metrics, others = [], {}
        for task in self._tasks:
            if task == _MM_VET:
                metrics.append(self._mm_vet(document))
            elif task in _COLUMNS:
                metrics.append(_by_rules(_COLUMNS[task], task, document))
            else:
                others[task] = _numbers(document["results"].get(task, {}))
        return metrics, others

    def _mm_vet(self, document: dict[str, Any]) -> Metric:
        """Return MM-Vet by the samples that a judge has judged.

        Without a judge lmms-eval does not fail: it gives each answer 0.
        """
        _, total = _counts(document, [_MM_VET])
        samples = []
        for file in (self._folder / "scores").rglob(f"*_samples_{_MM_VET}.jsonl"):
            for line in file.read_text(encoding="utf-8").splitlines():
                samples.append(json.loads(line)["gpt_eval_score"])
        judged = [sample for sample in samples if sample.get("eval_model")]
        if not judged:
            return not_judged("MM-Vet", total)
        judges = sorted({sample["eval_model"] for sample in judged})
        value = 100 * sum(sample["score"] for sample in judged) / len(judged)
        return judged_metric("MM-Vet", value, len(judged), total, ", ".join(judges), {})


def _by_rules(column: _Column, task: str, document: dict[str, Any]) -> Metric:
    tasks = list(column.tasks) or [task]
    parts = {}
    for name in tasks:
        found = document["results"].get(name, {}).get(f"{column.metric},none")
        if not isinstance(found, (int, float)):
            raise ValueError(f"lmms-eval has no {column.metric} of {name}; see its log")
        parts[name] = column.scale * found
    judged, total = _counts(document, tasks)
    value = sum(parts.values()) / len(parts)
    shown = parts if column.tasks else {}
    return judged_metric(column.column, value, judged, total, _RULES, shown)


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a task without their errors."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and "stderr" not in name
    }


def _counts(document: dict[str, Any], tasks: Sequence[str]) -> tuple[int, int]:
    counts = [document["n-samples"][task] for task in tasks]
    return sum(int(c["effective"]) for c in counts), sum(int(c["original"]) for c in counts)


def run_logged(
    command: Sequence[str] | str, log: Path, name: str, environment: dict[str, str]
) -> None:
    """Run a command, by a shell if it is one text; what it prints goes to a file.

    Raises:
        ValueError: it cannot be run, or fails.
    """
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            shell=isinstance(command, str),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise ValueError(
            f"{name} ended with exit code {done.returncode} ({last_line(log)}); see {log}"
        )


def last_line(log: Path) -> str:
    """Return the last line that a command has printed."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return _COLORS.sub("", lines[-1]) if lines else "it printed nothing"
