"""What a trained model draws from a prompt of its training data: has it learned the picture?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_aia.aia.roles import Task
from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.config import ParallelConfig
from megatron_aia.data.tokenizer import load_text_tokenizer
from megatron_aia.generation.drawing import Guidance, draw_pictures
from megatron_aia.generation.load import inference_config, make_inference, open_writer
from megatron_aia.generation.sampling import Sampling
from megatron_aia.shards.index import open_index

_ONE_PROCESS = ParallelConfig(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)


@dataclass(frozen=True)
class Redrawn:
    """One image of the data and what the model makes of its prompt."""

    prompt: str
    codes: np.ndarray
    """int64 ``[h, w]`` of the data."""
    drawn: np.ndarray
    """int64 ``[h, w]``, the most probable code at each position."""

    @property
    def agreement(self) -> float:
        """Share of equal codes."""
        return float((self.codes == self.drawn).mean())


def redraw(run: Path, data: Path) -> Redrawn:
    """Draw the first generation sample of a data folder.

    Args:
        run: folder of a run's checkpoints; the newest is taken.
        data: shards, with their tokeniser beside them.

    Raises:
        ValueError: no checkpoint of a family that draws, or no generation sample.
    """
    checkpoint = find_checkpoint(run)
    config = inference_config(checkpoint, _ONE_PROCESS, bf16=False)
    index = open_index(data)
    numbers = np.flatnonzero(index.tasks == int(Task.GENERATION))
    if not len(numbers):
        raise ValueError(f"{data} has no image to draw")
    sample = index.read(int(numbers[0]), config.model.codebook_size)
    (codes,) = sample.codes
    inference = make_inference(config)(config, load_text_tokenizer(data))
    drawing = inference.drawing(sample.turns[0].text, None, (codes.shape[0], codes.shape[1]))
    greedy = Guidance(scale=1.0, sampling=Sampling(temperature=0.0))
    with open_writer(checkpoint, config) as writer:
        (ids,) = draw_pictures(writer.chunks, inference, writer.parallel, [drawing], [0], greedy)
    return Redrawn(sample.turns[0].text, codes, inference.codes(drawing, ids))
