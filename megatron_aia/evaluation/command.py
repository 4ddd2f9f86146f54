"""The command that evaluates, behind its flags."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.evaluation.drawn import DRAWN, digest_of, rewrite, score
from megatron_aia.evaluation.lmms import LmmsEval
from megatron_aia.evaluation.options import EvaluateOptions
from megatron_aia.evaluation.realunify import RealUnify
from megatron_aia.evaluation.report import table_of_result
from megatron_aia.evaluation.result import Metric, Result, write_result
from megatron_aia.generation.answers import AnswersFile, answer_all, check_questions
from megatron_aia.generation.command import describe_model, on_first_rank
from megatron_aia.generation.options import AnsweringOptions, DrawingOptions
from megatron_aia.generation.picture_settings import PictureSettings
from megatron_aia.generation.pictures import (
    DrawnPicture,
    PictureRequest,
    draw_requests,
    write_drawings,
)
from megatron_aia.generation.prompts import Prompt
from megatron_aia.generation.questions import AskedQuestion, read_questions
from megatron_aia.generation.session import Session, open_session
from megatron_aia.generation.settings_file import SETTINGS_FILE, compare_settings, open_results
from megatron_aia.runtime.device import release_memory
from megatron_aia.runtime.parallel import leave_process_group


def evaluate(options: EvaluateOptions, world_size: int, is_first: bool) -> str:
    """Run a benchmark as far as it goes here; every rank calls this.

    Args:
        options: of the command.
        world_size: processes.
        is_first: whether this is rank 0, which alone has pictures scored.

    Returns:
        What it found, as a table; empty on all ranks but the first.

    Raises:
        ValueError: one line with a remedy.
    """
    run = {"lmms": _understand, "realunify": _realunify}.get(options.benchmark, _draw)
    read = run(options, world_size)
    if not is_first:
        return ""
    release_memory()
    metrics, more = read()
    text = (options.output / SETTINGS_FILE).read_text(encoding="utf-8")
    conditions = {**yaml.safe_load(text), **more}
    result = Result(options.benchmark, tuple(metrics), conditions)
    write_result(options.output, result)
    return table_of_result(result)


_HIDDEN = {"asked": "other prompts"}
Scoring = Callable[[], tuple[list[Metric], dict[str, Any]]]
"""Has what was made scored, and returns metrics and more conditions."""


def _draw(options: EvaluateOptions, world_size: int) -> Scoring:
    benchmark = DRAWN[options.benchmark](_need_data(options), options.output)
    count = min(options.limit or len(benchmark.prompts), len(benchmark.prompts))
    prompts, said = rewrite(benchmark.prompts[:count], options.rewritten_prompts)
    places = [divmod(i, benchmark.pictures) for i in range(count * benchmark.pictures)]
    done = [partial(benchmark.is_done, *place) for place in places]
    asked: dict[str, Any] = {"prompts": said, "asked": digest_of(prompts)}
    asked["pictures_of_prompt"] = benchmark.pictures
    if not _is_complete(options, done, asked):
        requests = [PictureRequest(Prompt(prompts[i]), number) for i, number in places]
        with open_session(options, world_size, True, image_area=options.image_area) as session:
            settings = PictureSettings.resolve(options, session.inference, options.seed)
            drawings = write_drawings(session, settings, requests)
            described = {**settings.describe(), **asked}
            _begin(session, options, described, partial(benchmark.prepare, count))

            def save(number: int, picture: DrawnPicture) -> None:
                benchmark.save(*places[number], picture.image)

            work = (session, settings, requests, drawings)
            draw_requests(*work, lambda number: done[number](), save, options.batch_size)
        leave_process_group()

    def read() -> tuple[list[Metric], dict[str, Any]]:
        benchmark.finish(count)
        return [score(benchmark, options, benchmark.total, benchmark.side())], _judged_by(options)

    return read


def _realunify(options: EvaluateOptions, world_size: int) -> Scoring:
    benchmark = RealUnify(_need_data(options), options.output, options.limit)
    questions = benchmark.questions
    done = [partial(benchmark.is_done, item) for item in range(len(questions))]
    asked = {**_describe_answers(options), "asked": digest_of([q.text for q in questions])}
    if not _is_complete(options, [benchmark.answers.is_file, *done], asked):
        how = (True, options.system_prompt, options.image_area)
        with open_session(options, world_size, *how) as session:
            settings = PictureSettings.resolve(options, session.inference, options.seed)
            _begin(session, options, {**settings.describe(), **asked}, benchmark.prepare)
            _answer(session, options, questions, benchmark.answers)
            requests = [PictureRequest(Prompt(words)) for words in benchmark.read_responses()]
            drawings = write_drawings(session, settings, requests)

            def save(number: int, picture: DrawnPicture) -> None:
                benchmark.save(number, picture.image)

            work = (session, settings, requests, drawings)
            draw_requests(*work, benchmark.is_done, save, options.batch_size)
        leave_process_group()

    def read() -> tuple[list[Metric], dict[str, Any]]:
        benchmark.finish()
        return [score(benchmark, options, benchmark.total, benchmark.side())], _judged_by(options)

    return read


def _understand(options: EvaluateOptions, world_size: int) -> Scoring:
    for name in ("score_command", "results", "rewritten_prompts", "data"):
        if getattr(options, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} has no meaning with --benchmark lmms; leave it out")
    asker = LmmsEval(options.lmms_eval, options.tasks, options.output, options.limit)
    asked = {**_describe_answers(options), "tasks": list(options.tasks), "limit": options.limit}
    if not _is_complete(options, [asker.answers.is_file], asked):
        how = (False, options.system_prompt, options.image_area)
        with open_session(options, world_size, *how) as session:
            described = {**asked, "image_area": options.image_area, "seed": options.seed}
            _begin(session, options, described, asker.ask)
            _answer(session, options, read_questions(asker.questions), asker.answers)
        leave_process_group()

    def read() -> tuple[list[Metric], dict[str, Any]]:
        asker.score()
        metrics, others = asker.read()
        return metrics, {"other_tasks": others} if others else {}

    return read


def _begin(
    session: Session,
    options: EvaluateOptions,
    described: Mapping[str, Any],
    prepare: Callable[[], None],
) -> None:
    """Make the folder or go on with it, on the first rank.

    Raises:
        ValueError: on every rank, if it was begun with other settings.
    """
    settings = {"benchmark": options.benchmark, **describe_model(session), **described}
    on_first_rank(session, partial(open_results, options.output, settings, _HIDDEN, ()))
    on_first_rank(session, prepare)


def _need_data(options: EvaluateOptions) -> Path:
    if options.data is None:
        raise ValueError(f"--benchmark {options.benchmark} needs --data; see --help")
    return options.data


def _is_complete(
    options: EvaluateOptions, done: Sequence[Callable[[], bool]], asked: Mapping[str, Any]
) -> bool:
    """Return whether only the score is missing: no model is needed for it.

    Args:
        options: of the command.
        done: whether a part is there.
        asked: settings that are known without a model.

    Raises:
        ValueError: the folder was begun with another value of a flag that is given.
    """
    path = options.output / SETTINGS_FILE
    if not path.is_file() or not all(is_done() for is_done in done):
        return False
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    given = {field.name: getattr(options, field.name) for field in fields(DrawingOptions)}
    given |= {"seed": options.seed, "benchmark": options.benchmark, **asked}
    if options.load.is_dir():
        given["checkpoint"] = str(find_checkpoint(options.load))
    given = {k: v for k, v in given.items() if v is not None and k in found}
    compare_settings(options.output, {k: found[k] for k in given}, given, _HIDDEN)
    return True


def _judged_by(options: EvaluateOptions) -> dict[str, Any]:
    return {"score_command": options.score_command} if options.score_command else {}


def _answering(options: EvaluateOptions) -> AnsweringOptions:
    return AnsweringOptions(
        system_prompt=options.system_prompt, max_new_tokens=options.max_new_tokens
    )


def _describe_answers(options: EvaluateOptions) -> dict[str, Any]:
    system = options.system_prompt
    return {
        "system_prompt": "of training" if system is None else system,
        "max_new_tokens": options.max_new_tokens,
    }


def _answer(
    session: Session, options: EvaluateOptions, questions: Sequence[AskedQuestion], path: Path
) -> None:
    """Answer all questions, unless the file is there."""
    is_there = [path.is_file()]
    dist.broadcast_object_list(is_there, src=0, group=session.parallel.control)
    if is_there[0]:
        return
    settings = {**describe_model(session), **_describe_answers(options), "seed": options.seed}
    file = AnswersFile(path, questions, settings, options.batch_size)
    on_first_rank(session, partial(check_questions, session, questions))
    on_first_rank(session, file.open)
    answer_all(session, questions, _answering(options), options.seed, file)
    on_first_rank(session, file.finish)
