"""Drawing benchmarks: what is the same for all of them. No torch."""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from megatron_aia.evaluation.dpg import DPGBench
from megatron_aia.evaluation.geneval import GenEval
from megatron_aia.evaluation.lmms import run_logged
from megatron_aia.evaluation.options import EvaluateOptions
from megatron_aia.evaluation.result import Metric, not_judged
from megatron_aia.generation.prompts import read_text

if TYPE_CHECKING:
    from PIL.Image import Image


class Scored(Protocol):
    """A benchmark whose pictures somebody else's program scores."""

    column: str
    images: Path
    """What is scored."""
    results: Path
    """What the scorer writes."""

    def read(self, judge: str) -> Metric:
        """Read ``results``."""


class DrawnBenchmark(Scored, Protocol):
    """A benchmark of prompts, some pictures each."""

    pictures: int
    """Of each prompt."""
    prompts: list[str]

    @property
    def total(self) -> int:
        """What a scorer counts: pictures, or prompts."""

    def prepare(self, count: int) -> None:
        """Make what stands beside the pictures of the first ``count`` prompts."""

    def is_done(self, prompt: int, number: int) -> bool:
        """Return whether a picture is there."""

    def save(self, prompt: int, number: int, image: "Image") -> None:
        """Write a picture."""

    def finish(self, count: int) -> None:
        """Make what the scorer takes of the pictures of the first ``count`` prompts."""

    def side(self) -> int:
        """Return the side of a picture in pixels."""


DRAWN: dict[str, Callable[[Path, Path], DrawnBenchmark]] = {"geneval": GenEval, "dpg": DPGBench}


def score(benchmark: Scored, options: EvaluateOptions, of: int, side: int) -> Metric:
    """Run the user's scorer, if there is one, and read what a scorer has written.

    Args:
        benchmark: all drawn.
        options: of the command.
        of: pictures or prompts that the benchmark has.
        side: of a picture, in pixels.

    Raises:
        ValueError: the scorer fails, or wrote something else.
    """
    if options.score_command is not None:
        values = {"{images}": benchmark.images, "{results}": benchmark.results, "{side}": side}
        command = options.score_command
        for name, value in values.items():
            text = str(value.absolute()) if isinstance(value, Path) else str(value)
            command = command.replace(name, shlex.quote(text))
        log = options.output / "score.log"
        run_logged(command, log, "--score-command", dict(os.environ))
    if options.results is not None:
        benchmark.results = options.results
    elif options.score_command is not None and not benchmark.results.is_file():
        raise ValueError(
            f"--score-command wrote no {benchmark.results}; name it {{results}} in the command, or "
            "by --results"
        )
    if not benchmark.results.is_file():
        return not_judged(benchmark.column, of)
    return benchmark.read(options.score_command or f"results of {benchmark.results.name}")


def rewrite(prompts: Sequence[str], path: Path | None) -> tuple[list[str], str]:
    """Return what is drawn for each prompt, and what a result says of it.

    Raises:
        ValueError: the file is no object of texts, or lacks a prompt.
    """
    if path is None:
        return list(prompts), "original"
    text = read_text(path)
    try:
        table = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--rewritten-prompts {path} is no JSON ({error})") from None
    if not isinstance(table, dict):
        raise ValueError(f"--rewritten-prompts {path} is no object, prompt to prompt")
    rewritten = []
    for prompt in prompts:
        found = table.get(prompt)
        if not isinstance(found, str) or not found.strip():
            raise ValueError(f"--rewritten-prompts {path} has no text for {prompt!r}")
        rewritten.append(found)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return rewritten, f"rewritten ({path.name} {digest})"


def digest_of(prompts: Sequence[str]) -> str:
    """Return a short name of what is asked."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]
