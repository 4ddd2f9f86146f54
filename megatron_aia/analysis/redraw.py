"""What a trained model draws from a prompt of its training data: has it learned the picture?"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megatron_aia.aia.roles import Task
from megatron_aia.checkpoint.folder import CONFIG_FILE, find_checkpoint
from megatron_aia.checkpoint.single_process_model import SingleProcessModel
from megatron_aia.data.tokenizer import load_text_tokenizer
from megatron_aia.models import load_model_spec, read_run_config
from megatron_aia.shards.index import open_index


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
        ValueError: no checkpoint of a family that can draw, or no generation sample.
    """
    path = find_checkpoint(run)
    config = read_run_config(str(path / CONFIG_FILE))
    index = open_index(data)
    numbers = np.flatnonzero(index.tasks == int(Task.GENERATION))
    spec = load_model_spec(config.model.model)
    if spec.draw_greedily is None or not len(numbers):
        raise ValueError(f"{run} and {data} are no model that draws with images to draw")
    sample = index.read(int(numbers[0]), config.model.codebook_size)
    (codes,) = sample.codes
    prompt = spec.encoder(config, load_text_tokenizer(data))
    tokens = torch.from_numpy(prompt(sample, False).tokens[: -codes.size])
    with SingleProcessModel(config.model) as weights:
        drawn = spec.draw_greedily(weights.load_model(path), tokens, codes.size)
    return Redrawn(sample.turns[0].text, codes, drawn.numpy().reshape(codes.shape))
