"""Intensities from a sample of queries, beside an attention that is not opened.

The mass of a query needs its query and all keys it sees, nothing of the kernel that computed the
output. So a few queries a head are enough to estimate the sum of Eq. 1 over all of them, beside any
kernel. For a term with queries Q of which R are drawn, Q is cut into R strata of neighbours and one
query is drawn from each, independently for every head:

    sum_{i in Q} s_i  ~  sum_k n_k s_{i_k},      i_k uniform in stratum k of n_k queries.

The estimate of the sum and its gradient are unbiased. Its variance is the sum over heads and
strata of n_k^2 var_k(s), so the standard deviation of an intensity over H heads is at most
1 / (2 sqrt(R H)), and far less where neighbouring queries look alike. With R >= |Q| it is exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from megatron_aia.aia.roles import Task
from megatron_aia.attention import rectangle
from megatron_aia.attention.flash_ops import Backend
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.pieces import Piece
from megatron_aia.runtime.device import send

_MAX_BLOCK_ELEMENTS = 1 << 22
"""Elements of P (heads x queries x keys) held at a time: 16 MiB in float32."""


@dataclass(frozen=True)
class SampledIntensity:
    """Draws and measures the queries of one layer.

    The queries are a function of seed, layer, task, head and the sample's position in the run: the
    same in every layout, in a second forward for recompute, and in a resumed run.
    """

    queries_per_head: int
    """R, of each term."""
    seed: int
    layer: int
    """0-based layer of the whole model."""
    first_head: int = 0
    """First query head of this tensor-parallel rank."""
    backend: Backend = "flash"
    """Kernel of :meth:`attend`."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layout: AttentionLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Attend with a flash kernel that measures nothing, and estimate the sums beside it.

        Arguments and results are those of :func:`megatron_aia.attention.eager.attend`.
        """
        unmeasured = layout.without_terms()
        output, _ = rectangle.attend(query, key, value, unmeasured, scale, self.backend)
        return output, self.sums(query, key, layout, scale)

    def sums(self, query: Tensor, key: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
        """Estimate the sums for the queries and keys that some other attention was given.

        Args:
            query: ``[b, h, held, d]``, the heads and tokens of this rank, after the rotary
                embedding.
            key: ``[b, g, s, d]`` with h a multiple of g.
            layout: samples and terms of the micro-batch.
            scale: factor of the scores.

        Returns:
            ``[n]``, at least float32; differentiable in ``query`` and ``key``.
        """
        # Kept for a second forward under recompute.
        drawn = ("sampled", self, query.shape[1], query.device)
        if drawn not in layout.cache:
            layout.cache[drawn] = self._draw(query.shape[1], layout, query.device)
        samples = layout.cache[drawn]
        sums: Tensor = _RowMasses.apply(query, key, layout, scale, samples)
        return sums

    def _draw(
        self, num_heads: int, layout: AttentionLayout, device: torch.device
    ) -> "list[_Sample]":
        samples = []
        for piece, rectangles in zip(layout.pieces, layout.rectangles, strict=True):
            terms = dict(piece.terms)
            for of_term in rectangles:
                term = terms[of_term.term]
                drawn = self.choose(len(term.queries), num_heads, piece.position, term.task)
                queries, weights, stops = _in_piece(piece, term.queries, *drawn)
                is_key = torch.zeros(piece.keys.stop - piece.keys.start)
                is_key[torch.from_numpy(of_term.keys)] = 1
                samples.append(
                    _Sample(
                        of_term.term,
                        piece,
                        send(torch.from_numpy(queries), device),
                        send(torch.from_numpy(weights), device),
                        tuple(stops.tolist()),
                        send(is_key, device),
                    )
                )
        return samples

    def choose(
        self, num_queries: int, num_heads: int, position: int, task: Task
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw the queries of one term.

        Args:
            num_queries: queries |Q| of the term.
            num_heads: query heads of this rank.
            position: of the sample in the run.
            task: of the term.

        Returns:
            Numbers of queries int64 ``[num_heads, R]``, ascending and distinct for a head; and the
            size of each stratum int64 ``[R]``, the weights. R is at most ``num_queries``.
        """
        num_strata = min(self.queries_per_head, num_queries)
        bounds = np.linspace(0, num_queries, num_strata + 1).astype(np.int64)
        sizes = np.diff(bounds)
        generator = np.random.default_rng([self.seed, position, self.layer, int(task)])
        # Heads of the ranks before this one are drawn and left out: the draw of a head does not
        # depend on how heads are split.
        uniform = generator.random((self.first_head + num_heads, len(sizes)))[self.first_head :]
        return bounds[:-1] + (uniform * sizes).astype(np.int64), sizes


class _Sample(NamedTuple):
    """Sampled queries of one term that lie in one piece."""

    term: int
    piece: Piece
    queries: Tensor
    """int64 ``[h, strata]``, positions in the queries of the piece."""
    weights: Tensor
    """int64 ``[h, strata]``, queries each stands for; 0 for a query of another piece."""
    stops: tuple[int, ...]
    """For each stratum: its queries in the piece see no key from this position of the piece on."""
    is_key: Tensor
    """float32 ``[m]``, 1 where a key of the piece is one of the term."""


def _in_piece(
    piece: Piece, queries: np.ndarray, choice: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what of a term's draw lies in a piece; see :class:`_Sample`.

    A stratum may lie in two pieces, and its query in the one for this head and in the other for the
    next. The arrays stay rectangular: a query from elsewhere is moved to the edge, with weight 0.
    """
    first, stop = piece.keys.start + piece.offset, piece.keys.stop
    ends = np.cumsum(sizes)
    touches = (queries[ends - 1] >= first) & (queries[ends - sizes] < stop)
    drawn = queries[choice[:, touches]]
    weights = sizes[touches] * ((drawn >= first) & (drawn < stop))
    last_queries = np.minimum(queries[ends[touches] - 1], stop - 1)
    return np.clip(drawn, first, stop - 1) - first, weights, last_queries + 1 - piece.keys.start


class _RowMasses(torch.autograd.Function):
    """Weighted sums of row masses, ``[n]``, from sampled queries."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        layout: AttentionLayout,
        scale: float,
        samples: list[_Sample],
    ) -> Tensor:
        dtype = torch.promote_types(query.dtype, torch.float32)
        sums = query.new_zeros(layout.num_terms, dtype=dtype)
        saved = []
        for sample in samples:
            q, k = sample.piece.of_rows(query)[0], sample.piece.of_keys(key)[0]
            lses, masses = [], []
            for block in _blocks(q, k.to(dtype), sample, scale):
                lse = block.scores.logsumexp(-1, keepdim=True)
                probability = block.scores.sub_(lse).exp_()
                masses.append(probability @ sample.is_key[: block.stop].to(dtype))
                lses.append(lse.squeeze(-1))
            mass, lse = torch.cat(masses, dim=1), torch.cat(lses, dim=1)
            sums[sample.term] += (mass * sample.weights).sum()
            saved += [mass, lse]
        ctx.save_for_backward(query, key, *saved)
        ctx.scale = scale
        ctx.samples = samples
        return sums

    @staticmethod
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        query, key, *saved = ctx.saved_tensors
        dtype = grad_sums.dtype
        grad_query, grad_key = torch.zeros_like(query), torch.zeros_like(key)
        for number, sample in enumerate(ctx.samples):
            q, k = sample.piece.of_rows(query)[0], sample.piece.of_keys(key)[0].to(dtype)
            d_q, d_k = sample.piece.of_rows(grad_query)[0], torch.zeros_like(k)
            mass, lse = (x.unsqueeze(-1) for x in saved[2 * number : 2 * number + 2])
            weights = (sample.weights * grad_sums[sample.term] * ctx.scale).unsqueeze(-1)
            for block in _blocks(q, k, sample, ctx.scale):
                probability = block.scores.sub_(lse[:, block.strata]).exp_()
                is_key = sample.is_key[: block.stop].to(dtype)
                centred = is_key - mass[:, block.strata]
                d_scores = probability.mul_(centred).mul_(weights[:, block.strata])
                d_scores = d_scores.view(k.shape[0], -1, block.stop)
                d_k[:, : block.stop] += d_scores.transpose(-1, -2) @ block.query
                d_queries = (d_scores @ k[:, : block.stop]).view(*block.queries.shape, -1)
                index = block.queries.unsqueeze(-1).expand_as(d_queries)
                d_q.scatter_add_(1, index, d_queries.to(d_q.dtype))
            sample.piece.of_keys(grad_key)[0].add_(d_k)
        return grad_query, grad_key, None, None, None


class _Block(NamedTuple):
    """Some strata of a sample."""

    strata: slice
    stop: int
    """Keys from here on are seen by no query of the block."""
    queries: Tensor
    """int64 ``[h, queries]``, positions in the queries of the piece."""
    query: Tensor
    """``[g, h / g * queries, d]``, in the precision of the sums."""
    scores: Tensor
    """``[h, queries, stop]``, scaled, -inf at keys after the query; may be overwritten."""


def _blocks(query: Tensor, key: Tensor, sample: _Sample, scale: float) -> Iterator[_Block]:
    """Compute the scores of the sampled queries of a piece, a bounded number at a time."""
    heads, size = query.shape[0], query.shape[-1]
    queries_of_block = max(1, _MAX_BLOCK_ELEMENTS // (heads * key.shape[1]))
    for first in range(0, len(sample.stops), queries_of_block):
        strata = slice(first, first + queries_of_block)
        stop = sample.stops[strata][-1]
        queries = sample.queries[:, strata]
        of_rows = query.gather(1, queries.unsqueeze(-1).expand(-1, -1, size)).to(key.dtype)
        by_key_head = of_rows.view(key.shape[0], -1, size)
        scores = (by_key_head @ key[:, :stop].transpose(-1, -2)).view(heads, -1, stop).mul_(scale)
        last_seen = queries.unsqueeze(-1) + sample.piece.offset
        after = torch.arange(stop, device=queries.device) > last_seen
        scores.masked_fill_(after, -torch.inf)
        yield _Block(strata, stop, queries, by_key_head, scores)
