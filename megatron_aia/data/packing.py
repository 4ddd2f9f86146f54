"""Which sample goes to which row, and which row to which rank: decided from lengths alone.

Every rank computes the same plan without reading a sample, so ranks agree without talking.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from megatron_aia.aia.roles import Task, find_terms
from megatron_aia.data.sample import TokenizedSample

Row = list[int]
"""Numbers of the samples in one row, left to right."""


def pack(lengths: Sequence[int], seq_length: int) -> list[Row]:
    """Put samples into few rows: longest sample first, each into the fullest row that has room.

    Args:
        lengths: tokens of each sample.
        seq_length: tokens of a row.

    Returns:
        Rows of sample numbers; every number is in exactly one row.

    Raises:
        ValueError: a sample is longer than a row.
    """
    _check_fit(lengths, seq_length)
    rows: list[Row] = []
    free: list[tuple[int, int]] = []  # ascending (free tokens, row number)
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        found = bisect_left(free, (length, 0))
        if found < len(free):
            room, row_number = free.pop(found)
        else:
            room, row_number = seq_length, len(rows)
            rows.append([])
        rows[row_number].append(number)
        insort(free, (room - length, row_number))
    return rows


def plan_rows(lengths: Sequence[int], seq_length: int, packing: bool, multiple: int) -> list[Row]:
    """Lay the samples of a step out in rows, the longest row first.

    The number of rows is rounded up to a multiple of ``multiple``. A row of padding costs as much
    as a full one, so with packing the added rows take samples from others as far as possible;
    the rest stay empty.

    Raises:
        ValueError: a sample is longer than a row.
    """
    if packing:
        rows = pack(lengths, seq_length)
    else:
        _check_fit(lengths, seq_length)
        rows = [[number] for number in range(len(lengths))]

    def tokens(row: Row) -> int:
        return sum(lengths[number] for number in row)

    missing = -len(rows) % multiple
    for _ in range(missing):
        fullest = max((row for row in rows if len(row) > 1), key=tokens, default=[])
        rows.append(fullest[1::2])
        del fullest[1::2]
    return sorted(rows, key=tokens, reverse=True)


def deal_rows(
    rows: Sequence[Row], rank: int, num_ranks: int, micro_batch_size: int
) -> list[list[Row]]:
    """Return the micro-batches of one rank, ``micro_batch_size`` rows each.

    Long and short rows are spread evenly over ranks, and over the micro-batches of a rank.

    Args:
        rows: as many as fill every micro-batch of every rank, the longest first.
        rank: data-parallel rank.
        num_ranks: data-parallel size.
        micro_batch_size: rows of a micro-batch.
    """
    rounds, rest = divmod(len(rows), num_ranks)
    num_micro_batches, partial = divmod(rounds, micro_batch_size)
    assert rest == 0 and partial == 0
    own = []
    for first in range(0, len(rows), num_ranks):
        forward = (first // num_ranks) % 2 == 0
        own.append(rows[first + (rank if forward else num_ranks - 1 - rank)])
    return [own[i::num_micro_batches] for i in range(num_micro_batches)]


def deal_like_rows(
    rows: Sequence[Row], rank: int, num_ranks: int, micro_batch_size: int
) -> list[list[Row]]:
    """Return the micro-batches of one rank; the rows of each are of like length.

    The micro-batches of one number are of like length on all ranks too, and the ranks take turns at
    the longest. The arguments are those of ``deal_rows``.
    """
    block = num_ranks * micro_batch_size
    num_micro_batches, rest = divmod(len(rows), block)
    assert rest == 0
    own = []
    for number in range(num_micro_batches):
        place = rank if number % 2 == 0 else num_ranks - 1 - rank
        first = number * block + place * micro_batch_size
        own.append(list(rows[first : first + micro_batch_size]))
    return own


def row_length(num_tokens: Sequence[int], multiple: int, seq_length: int) -> int:
    """Return how long the rows of a variable micro-batch are, in tokens.

    Args:
        num_tokens: tokens of the samples of each row.
        multiple: the length is rounded up to one of this.
        seq_length: the longest row; no row of samples may need more.
    """
    longest = max(num_tokens)
    assert longest <= seq_length
    return min(max(-(-longest // multiple), 1) * multiple, seq_length)


def _check_fit(lengths: Sequence[int], seq_length: int) -> None:
    longest = max(lengths, default=0)
    if longest > seq_length:
        raise ValueError(
            f"a sample of {longest} tokens does not fit a row of {seq_length}; raise --seq-length "
            "or pass --overlong-samples truncate"
        )


def truncate(sample: TokenizedSample, seq_length: int) -> TokenizedSample:
    """Cut answer tokens from the right until the sample fits a row.

    Raises:
        ValueError: an image would be cut, or nothing to learn would be left.
    """
    if len(sample) <= seq_length:
        return sample
    needed = _shortest_cut(sample)
    if needed > seq_length:
        raise ValueError(
            f"sample {sample.key} has {len(sample)} tokens and its image and the start of its "
            f"answer need {needed} of them, more than a row of {seq_length}; raise --seq-length "
            f"to {needed} or remove the sample"
        )
    return TokenizedSample(
        key=sample.key,
        task=sample.task,
        tokens=sample.tokens[:seq_length],
        roles=sample.roles[:seq_length],
        targets={name: target.cut(seq_length) for name, target in sample.targets.items()},
        images=sample.images,
    )


def _shortest_cut(sample: TokenizedSample) -> int:
    """Return how many tokens from the left hold every image and one target."""
    # An output and the token that it predicts.
    ends = np.concatenate([np.zeros(0, int), *(t.positions + 2 for t in sample.targets.values())])
    needed = int(ends.min()) if len(ends) else len(sample)
    needed = max([needed, *(image.stop for image in sample.images)])
    for term in find_terms(sample.roles):
        image = term.rows if term.task is Task.GENERATION else term.keys
        needed = max(needed, int(image[-1]) + 1)
    if sample.task is Task.GENERATION and len(ends):
        # The target is the image, also where a dropped prompt leaves no roles.
        needed = max(needed, int(ends.max()))
    return needed
