"""Runs a batch of rows through a model in any layout, and gives every rank what was chosen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_aia.attention.decoding import DecodeState
from megatron_aia.models.inference import Inference
from megatron_aia.runtime.device import device, send
from megatron_aia.runtime.parallel import Parallel


def chooser_of(parallel: Parallel) -> int:
    """Return the global rank that chooses for its replica: the last stage's first tensor rank."""
    # In the order of stages, and in a stage of tensor ranks.
    ranks = dist.get_process_group_ranks(parallel.groups.mp)
    return int(ranks[-parallel.tensor_size])


class Decoder:
    """Feeds one batch to the chunks of a model, token by token.

    Every rank of a replica makes the same calls.

    Args:
        chunks: of this process, as ``decoding`` gives them.
        inference: of the family.
        parallel: of the run.
        prompts: int64 ids of each row.
        new_tokens: most tokens that will be fed behind the prompts.
        lane: of the batch, see ``SampleEncoder.lane``.
    """

    def __init__(
        self,
        chunks: Sequence[Any],
        inference: Inference,
        parallel: Parallel,
        prompts: Sequence[np.ndarray],
        new_tokens: int,
        lane: int = 0,
    ) -> None:
        self._chunks, self._inference, self._parallel = chunks, inference, parallel
        lengths = [len(prompt) for prompt in prompts]
        self._state = DecodeState(lengths, max(lengths) + new_tokens, device(), lane)
        self._prompts = prompts
        self._chooser = chooser_of(parallel)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self._prompts)

    def read_prompts(self, images: Tensor | None = None) -> Tensor | None:
        """Run the prompts; see ``feed``.

        Args:
            images: to look at, uint8 ``[n, 3, side, side]`` on the host.
        """
        longest = max(map(len, self._prompts))
        # An empty slot holds a token of the row, at which nobody looks.
        tokens = np.stack(
            [np.pad(row, (longest - len(row), 0), constant_values=row[0]) for row in self._prompts]
        )
        host = torch.from_numpy(tokens)
        places = self.send_places(host)
        sent = None if images is None else send(images, device())
        return self.feed(send(host, device()), places, sent)

    def send_places(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return ``Inference.places`` of tokens on the host, on the device."""
        found = self._inference.places(tokens)
        return {name: send(positions, device()) for name, positions in found.items()}

    def feed(
        self, tokens: Tensor, places: Mapping[str, Tensor], images: Tensor | None = None
    ) -> Tensor | None:
        """Run the next tokens of all rows.

        Args:
            tokens: int64 ``[b, new]`` on the device.
            places: of tokens of these kinds, on the device.
            images: to look at, on the device.

        Returns:
            ``[b, h]`` of the last token on the last stage, None elsewhere.
        """
        parallel = self._parallel
        positions = self._state.begin(tokens.shape[1])
        hidden: Tensor | None = None
        for stage, chunk in enumerate(self._chunks):
            if not parallel.has_embedding(stage):
                if parallel.pipeline_size > 1:
                    hidden = self._receive(chunk, tokens)
                chunk.set_input_tensor(hidden)
            hidden = self._inference.run(chunk, tokens, positions, self._state, images, places)
            if parallel.pipeline_size > 1 and not parallel.has_output(stage):
                self._send(hidden)
        return hidden if parallel.is_last_stage else None

    def choose(
        self,
        hidden: Tensor | None,
        logits: Callable[[Any, Tensor], Tensor],
        pick: Callable[[Tensor], Tensor],
        count: int,
    ) -> Tensor:
        """Choose on one rank, and give the choice to all ranks of the replica.

        Were each rank to pick for itself, two could part by a rounding, and their caches with them.

        Args:
            hidden: what ``feed`` returned.
            logits: ``(last chunk, hidden)`` to logits ``[b, n]``, by all ranks of the last stage.
            pick: those to int64 ids ``[count]``.
            count: ids that are chosen.

        Returns:
            int64 ``[count]`` on every rank.
        """
        ids = torch.empty(count, dtype=torch.int64, device=device())
        if hidden is not None:
            found = logits(self._chunks[-1], hidden)
            if dist.get_rank() == self._chooser:
                ids = pick(found).contiguous()
        if self._parallel.groups.mp.size() > 1:
            dist.broadcast(ids, self._chooser, group=self._parallel.groups.mp)
        return ids

    def _receive(self, chunk: Any, tokens: Tensor) -> Tensor:
        shape = (tokens.shape[1], tokens.shape[0], chunk.config.hidden_size)
        hidden = torch.empty(shape, dtype=chunk.config.pipeline_dtype, device=tokens.device)
        dist.recv(hidden, self._neighbour(-1), group=self._parallel.groups.pp)
        return hidden

    def _send(self, hidden: Tensor) -> None:
        dist.send(hidden.contiguous(), self._neighbour(1), group=self._parallel.groups.pp)

    def _neighbour(self, step: int) -> int:
        parallel = self._parallel
        ranks = dist.get_process_group_ranks(parallel.groups.pp)
        return ranks[(parallel.pipeline_rank + step) % parallel.pipeline_size]
