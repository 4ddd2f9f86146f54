"""Ask: write the questions of the chosen tasks to a folder. Score: give back their answers.

The checkpoint answers in between, by tools/chat.py or tools/evaluate.py, in its own environment
and layout. This package imports neither.
"""

import json
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms

from megatron_aia_lmms_eval.answers import read_answers

_DEFAULT_UNTIL = ["\n\n"]
"""What lmms-eval puts in where a task says nothing; it would cut answers at their first blank line.
"""


class MegatronAIA(lmms):
    """A model that somebody else runs.

    Args:
        mode: ``ask`` or ``score``.
        folder: of requests.jsonl and its pictures.
        answers: file of answers, to score.
        batch_size: not read; lmms-eval passes it.
        device: not read; lmms-eval passes it.
    """

    is_simple = True

    def __init__(
        self,
        mode: str = "",
        folder: str = "",
        answers: str = "",
        batch_size: Any = 1,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        if mode not in ("ask", "score") or not folder or (mode == "score") != bool(answers):
            raise ValueError(
                "--model_args: give mode=ask,folder=F or mode=score,folder=F,answers=FILE; found "
                f"mode={mode},folder={folder},answers={answers}"
            )
        self._asks, self._folder = mode == "ask", Path(folder)
        self._answers = {} if self._asks else read_answers(self._folder, Path(answers))

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Write the requests of a task down, or return their answers."""
        if not self._asks:
            return [self._answers[_key(request)] for request in requests]
        (self._folder / "images").mkdir(parents=True, exist_ok=True)
        with (self._folder / "requests.jsonl").open("a", encoding="utf-8") as file:
            for request in requests:
                file.write(json.dumps(self._question(request), ensure_ascii=False) + "\n")
        return ["" for _ in requests]

    def _question(self, request: Any) -> dict[str, Any]:
        text, options, doc_to_visual, doc_id, task, split = request.args
        names = []
        for number, image in enumerate(doc_to_visual(self.task_dict[task][split][doc_id])):
            if not hasattr(image, "convert"):
                raise ValueError(f"{task}: the model looks at pictures, not {type(image).__name__}")
            names.append(f"images/{task}-{split}-{doc_id}-{number}.png")
            image.convert("RGB").save(self._folder / names[-1])
        options = {name: value for name, value in options.items() if value is not None}
        if options.get("until") == _DEFAULT_UNTIL:
            del options["until"]
        return {"key": _key(request), "text": text, "images": names, "options": options}

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Refuse."""
        raise NotImplementedError("tasks of log-likelihoods are not supported; generate_until is")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refuse."""
        raise NotImplementedError("tasks of several rounds are not supported; generate_until is")


def _key(request: Any) -> str:
    *_, doc_id, task, split = request.args
    return f"{task}/{split}/{doc_id}/{request.idx}"
