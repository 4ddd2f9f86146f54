"""How much of a step is padding, with sequences of one length and with --variable-seq-lengths.

The planner of a run lays out steps of drawn lengths; no model, no shards:

    python benchmarks/sequence_padding.py [--steps 40]

The lengths are plausible, not measured. Prompts to draw from: 40 % short (mean 25 tokens), 60 %
long (mean 140). Questions and answers: half with a mean of 160 tokens, half of 480. All log-normal.
Both tasks are equally frequent; what is longer than a sequence is cut.
"""

from dataclasses import dataclass

import numpy as np

from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options
from megatron_aia.data.packing import deal_equal_lengths, plan_sequences, sequence_length


@dataclass
class Options:
    steps: int = 40
    """Steps to lay out, of 256 samples on 8 data-parallel ranks."""


@dataclass
class Model:
    name: str
    image: int
    """Tokens of an image and of the words around it."""
    seq_length: int
    packing: bool


MODELS = [
    Model("Janus-Pro, 384 x 384", 590, 4096, packing=False),
    Model("Janus-Pro, 384 x 384", 590, 8192, packing=True),
    Model("Emu3, 512 x 512", 4180, 5120, packing=False),
    Model("Emu3, 512 x 512", 4180, 16384, packing=True),
    Model("Emu3, 720 x 720", 8210, 10240, packing=False),
]
SAMPLES, RANKS, MULTIPLE = 256, 8, 64


def log_normal(rng: np.random.Generator, mean: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return rng.lognormal(np.log(mean) - sigma**2 / 2, sigma)


def draw_lengths(rng: np.random.Generator, model: Model) -> list[int]:
    half = SAMPLES // 2
    is_long = rng.random(half) < 0.6
    prompts = log_normal(rng, np.where(is_long, 140, 25), np.full(half, 0.5))
    is_long = rng.random(half) < 0.5
    answers = log_normal(rng, np.where(is_long, 480, 160), np.where(is_long, 0.5, 1.0))
    lengths = model.image + np.concatenate([prompts, answers])
    return np.minimum(lengths, model.seq_length).astype(int).tolist()


def count_positions(
    lengths: list[int], model: Model, micro_batch: int, variable: bool
) -> list[int]:
    """Return the positions of the sequences of each rank in a step, padding included."""
    sequences = plan_sequences(lengths, model.seq_length, model.packing, RANKS * micro_batch)
    if not variable:
        return [len(sequences) * model.seq_length // RANKS] * RANKS
    return [
        sum(
            micro_batch
            * sequence_length(
                [sum(lengths[n] for n in sequence) for sequence in batch],
                MULTIPLE,
                model.seq_length,
            )
            for batch in deal_equal_lengths(sequences, rank, RANKS, micro_batch)
        )
        for rank in range(RANKS)
    ]


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    print("| model | sequence | packing | micro-batch | fixed | variable | ranks wait |")
    print("|---|---|---|---|---|---|---|")
    for model in MODELS:
        rng = np.random.default_rng(0)
        steps = [draw_lengths(rng, model) for _ in range(options.steps)]
        tokens = sum(map(sum, steps))
        for micro_batch in (1, 2, 4):
            fixed, variable = (
                [count_positions(lengths, model, micro_batch, flag) for lengths in steps]
                for flag in (False, True)
            )
            padding = [1 - tokens / sum(map(sum, counts)) for counts in (fixed, variable)]
            wait = np.mean([1 - sum(c) / (RANKS * max(c)) for c in variable])
            print(
                f"| {model.name} | {model.seq_length} | {'on' if model.packing else 'off'} | "
                f"{micro_batch} | {padding[0]:.1%} | {padding[1]:.1%} | {wait:.1%} |"
            )


if __name__ == "__main__":
    main()
