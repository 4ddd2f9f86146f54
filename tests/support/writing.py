"""What tiny models draw and answer in a layout, as plain lists of ids."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.config import ParallelConfig
from megatron_aia.generation.answering import AnswerSettings, answer_questions
from megatron_aia.generation.drawing import Guidance, draw_pictures
from megatron_aia.generation.load import inference_config, open_writer
from megatron_aia.generation.sampling import Sampling, row_key
from megatron_aia.models import load_model_spec
from megatron_aia.models.inference import FREE, Drawing, Question
from megatron_aia.runtime.parallel import destroy_parallel
from support import decode_golden as golden
from support.tiny_data import ByteTokenizer

CONTEXT = 256
GREEDY, DRAWN = Sampling(0.0), Sampling(1.0, top_k=6, top_p=0.9)

EMU3_HEAD = [golden.BOI, 3, 2, 4, golden.IMG]
EMU3_PROMPTS = [[5, 7, 9, 11], [3], [12, 1, 33, 2, 2, 8, 30]]
EMU3_NEGATIVES = [[6], [6, 9], [6, 9, 4]]
EMU3_CHAT = [
    *(golden.BOS, 1, 2, golden.BOI, 2, 39, 2, golden.IMG, golden.FIRST + 3, golden.FIRST + 1),
    *(golden.EOL, golden.FIRST, golden.FIRST + 9, golden.EOL, golden.EOF, golden.EOI, 8, 9),
]
JANUS_PROMPTS = [[5, 7, 9, 11, 13], [5, 7], [21, 8, 30]]
JANUS_CHAT = [
    *(golden.J_BOS, 1, 2, golden.J_BOI, *[golden.SLOT] * golden.SIDE**2, golden.J_EOI, 8, 9)
]
PICTURE = torch.randint(0, 256, (3, 24, 24), generator=torch.Generator().manual_seed(7)).byte()


class SmallTokenizer(ByteTokenizer):
    """Any text in few ids."""

    def __init__(self, size: int) -> None:
        self.vocab_size = size

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 40 for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(f"<{i}>" for i in ids)

    def special_id(self, name: str) -> int:
        kinds = {"begin▁of▁sentence": 50, "end▁of▁sentence": 51, "pad": 52}
        kinds |= {"begin_of_image": 53, "end_of_image": 54, "User": 56, "Assistant": 57}
        return next(i for kind, i in kinds.items() if kind in name)


def emu3_drawing(prompt: list[int], negative: list[int], columns: int = golden.GRID[1]) -> Drawing:
    plan = ([FREE] * columns + [golden.EOL]) * golden.GRID[0]
    rows = [np.array([golden.BOS, *ids, *EMU3_HEAD]) for ids in (prompt, negative)]
    plan += [golden.EOF, golden.EOI, golden.EOS]
    return Drawing(rows[0], rows[1], np.array(plan), (golden.GRID[0], columns))


def janus_drawing(prompt: list[int]) -> Drawing:
    row = [golden.J_BOS, *prompt, golden.J_BOI]
    other = [golden.J_BOS, *[golden.J_PAD] * len(prompt), golden.J_BOI]
    plan = np.full(golden.SIDE**2, FREE)
    return Drawing(np.array(row), np.array(other), plan, (golden.SIDE, golden.SIDE))


DRAWINGS = {
    "emu3": [emu3_drawing(*pair) for pair in zip(EMU3_PROMPTS, EMU3_NEGATIVES, strict=True)],
    "janus_pro": [janus_drawing(prompt) for prompt in JANUS_PROMPTS],
}
QUESTIONS = {
    "emu3": [Question(np.array(EMU3_CHAT)), Question(np.array([golden.BOS, 4, 30, 2]))],
    "janus_pro": [
        Question(np.array([golden.J_BOS, 4, 30, 2])),
        Question(np.array(JANUS_CHAT), (PICTURE.numpy(),)),
    ],
}


def layout(**sizes: Any) -> ParallelConfig:
    whole = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
    return ParallelConfig(**{**whole, **sizes})


def write(
    checkpoint: Path, parallel: ParallelConfig, mistake: Callable[[ExitStack], None] | None = None
) -> dict[str, list[list[int]]]:
    """Return what one model draws and answers: by how, the ids of each row."""
    config = inference_config(find_checkpoint(checkpoint), parallel, False)
    family = config.model.model
    make = load_model_spec(family).inference
    assert make is not None
    inference = make(config, SmallTokenizer(40 if family == "emu3" else 60))
    drawings, questions = DRAWINGS[family], QUESTIONS[family]
    keys = [row_key(number) for number in range(len(drawings))]
    found = {}
    with ExitStack() as stack, open_writer(checkpoint, config) as writer:
        if mistake:
            mistake(stack)
        model = (writer.chunks, inference, writer.parallel)
        for name, guidance in (
            ("greedy", Guidance(1.0, GREEDY)),
            ("guided", Guidance(3.0 if family == "emu3" else 5.0, GREEDY)),
            ("drawn", Guidance(2.0, DRAWN)),
        ):
            rows = draw_pictures(*model, drawings, keys, guidance)
            found[name] = [row.tolist() for row in rows]
        for name, sampling in (("answers", GREEDY), ("drawn answers", DRAWN)):
            answers = answer_questions(
                *model, questions, keys[: len(questions)], AnswerSettings(8, sampling), CONTEXT
            )
            found[name] = [list(one.ids) for one in answers]
    destroy_parallel()
    return found


def write_each(
    checkpoints: dict[str, Path],
    layouts: dict[str, ParallelConfig],
    mistake: Callable[[ExitStack], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return what all models write in all layouts of this world: by family and layout."""
    return {
        family: {name: write(path, sizes, mistake) for name, sizes in layouts.items()}
        for family, path in checkpoints.items()
    }
