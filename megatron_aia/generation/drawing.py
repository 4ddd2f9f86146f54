"""The loop that draws: codes are chosen under guidance, ends of rows are forced."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_aia.aia.roles import Task
from megatron_aia.generation.decoder import Decoder
from megatron_aia.generation.sampling import RowNoise, Sampling, choose_ids, guide
from megatron_aia.models.inference import FREE, Drawing, Inference
from megatron_aia.runtime.device import device, send
from megatron_aia.runtime.parallel import Parallel


@dataclass(frozen=True)
class Guidance:
    """How pictures of a batch are drawn."""

    scale: float
    """Logits are ``u + scale * (c - u)``: 1 is the prompt alone, for which no second row is run."""
    sampling: Sampling


def draw_pictures(
    chunks: Sequence[Any],
    inference: Inference,
    parallel: Parallel,
    drawings: Sequence[Drawing],
    keys: Sequence[int],
    guidance: Guidance,
) -> list[np.ndarray]:
    """Draw a batch of pictures; every rank of a replica calls this.

    Args:
        chunks: of this process, as ``decoding`` gives them.
        inference: of the family.
        parallel: of the run.
        drawings: what to draw.
        keys: of each, by ``row_key``.
        guidance: of all.

    Returns:
        int64 ``[m]`` of each on every rank: the tokens behind its prompt.
    """
    guides = guidance.scale != 1
    prompts = [drawing.prompt for drawing in drawings]
    if guides:
        prompts += [drawing.unguided for drawing in drawings]
    steps = max(drawing.steps for drawing in drawings)
    plan = _plan(drawings, steps, inference.code_ids.start)
    forced = send(torch.from_numpy(plan), device())
    lane = inference.encoder.lane(Task.GENERATION)
    decoder = Decoder(chunks, inference, parallel, prompts, steps - 1, lane)
    places = decoder.send_places(torch.full((decoder.rows, 1), inference.code_ids.start))
    noise = RowNoise(keys)
    written = torch.empty(len(drawings), steps, dtype=torch.int64, device=device())
    hidden = decoder.read_prompts()
    for step in range(steps):
        is_free = plan[:, step] == FREE
        ids = forced[:, step]
        if is_free.any():
            chooser = _Chooser(guidance, noise, is_free, guides)
            chosen = _choose_token(decoder, hidden, inference, chooser)
            ids = chosen if is_free.all() else torch.where(ids == FREE, chosen, ids)
        written[:, step] = ids
        if step + 1 < steps:
            # Both rows of a picture get the same token.
            rows = torch.cat((ids, ids)) if guides else ids
            hidden = decoder.feed(rows.unsqueeze(1), places)
    found = written.cpu().numpy()
    return [
        np.concatenate((row[: drawing.steps], drawing.plan[drawing.steps :]))
        for row, drawing in zip(found, drawings, strict=True)
    ]


def _choose_token(
    decoder: Decoder, hidden: Tensor | None, inference: Inference, chooser: "_Chooser"
) -> Tensor:
    """Return an image token of each picture, int64 ``[pictures]``."""
    count = len(chooser.is_free)
    codes = torch.empty(count, 0, dtype=torch.int64, device=device())
    for _ in range(inference.code_depth):
        # Both rows of a picture have the same codes so far.
        known = torch.cat((codes, codes)) if chooser.guides else codes
        logits = partial(inference.next_code_logits, known=known)
        code = decoder.choose(hidden, logits, chooser.pick, count)
        codes = torch.cat((codes, code.unsqueeze(1)), dim=1)
    return inference.image_tokens(codes)


@dataclass(frozen=True, eq=False)
class _Chooser:
    guidance: Guidance
    noise: RowNoise
    is_free: np.ndarray
    guides: bool

    def pick(self, logits: Tensor) -> Tensor:
        """Return a code a picture; of a picture whose token is forced, any."""
        if self.guides:
            logits = guide(logits, self.guidance.scale)
        sampling = self.guidance.sampling
        drawn = None
        if not sampling.is_greedy:
            drawn = self.noise.draw(logits.shape[1], self.is_free, logits.device)
        return choose_ids(logits, sampling, drawn)


def _plan(drawings: Sequence[Drawing], steps: int, filler: int) -> np.ndarray:
    """Return the plans as int64 ``[pictures, steps]``; a smaller picture ends in any code."""
    plan = np.full((len(drawings), steps), filler, np.int64)
    for row, drawing in zip(plan, drawings, strict=True):
        row[: drawing.steps] = drawing.plan[: drawing.steps]
    return plan
