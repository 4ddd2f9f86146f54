"""Which sample goes to which sequence, and which sequence to which rank: decided from lengths
alone.

Every rank computes the same plan without reading a sample, so ranks agree without talking.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from megatron_aia.aia.roles import Task, find_terms
from megatron_aia.data.sample import TokenizedSample

PackedSequence = list[int]
"""Numbers of the samples in one sequence, left to right."""


def pack(lengths: Sequence[int], seq_length: int) -> list[PackedSequence]:
    """Put samples into few sequences: longest sample first, each into the fullest sequence that
    has room.

    Args:
        lengths: tokens of each sample.
        seq_length: tokens of a sequence.

    Returns:
        Sequences of sample numbers; every number is in exactly one sequence.

    Raises:
        ValueError: a sample is longer than a sequence.
    """
    _check_fit(lengths, seq_length)
    sequences: list[PackedSequence] = []
    free: list[tuple[int, int]] = []  # ascending (free tokens, sequence number)
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        found = bisect_left(free, (length, 0))
        if found < len(free):
            room, sequence_number = free.pop(found)
        else:
            room, sequence_number = seq_length, len(sequences)
            sequences.append([])
        sequences[sequence_number].append(number)
        insort(free, (room - length, sequence_number))
    return sequences


def plan_sequences(
    lengths: Sequence[int], seq_length: int, packing: bool, multiple: int
) -> list[PackedSequence]:
    """Lay the samples of a step out in sequences, the longest sequence first.

    The number of sequences is rounded up to a multiple of ``multiple``. A sequence of padding
    costs as much as a full one, so with packing the added sequences take samples from others as
    far as possible; the rest stay empty.

    Raises:
        ValueError: a sample is longer than a sequence.
    """
    if packing:
        sequences = pack(lengths, seq_length)
    else:
        _check_fit(lengths, seq_length)
        sequences = [[number] for number in range(len(lengths))]

    def tokens(sequence: PackedSequence) -> int:
        return sum(lengths[number] for number in sequence)

    missing = -len(sequences) % multiple
    for _ in range(missing):
        fullest = max(
            (sequence for sequence in sequences if len(sequence) > 1), key=tokens, default=[]
        )
        sequences.append(fullest[1::2])
        del fullest[1::2]
    return sorted(sequences, key=tokens, reverse=True)


def deal_sequences(
    sequences: Sequence[PackedSequence], rank: int, num_ranks: int, micro_batch_size: int
) -> list[list[PackedSequence]]:
    """Return the micro-batches of one rank, ``micro_batch_size`` sequences each.

    Long and short sequences are spread evenly over ranks, and over the micro-batches of a rank.

    Args:
        sequences: as many as fill every micro-batch of every rank, the longest first.
        rank: data-parallel rank.
        num_ranks: data-parallel size.
        micro_batch_size: sequences of a micro-batch.
    """
    rounds, rest = divmod(len(sequences), num_ranks)
    num_micro_batches, partial = divmod(rounds, micro_batch_size)
    assert rest == 0 and partial == 0
    own = []
    for first in range(0, len(sequences), num_ranks):
        forward = (first // num_ranks) % 2 == 0
        own.append(sequences[first + (rank if forward else num_ranks - 1 - rank)])
    return [own[i::num_micro_batches] for i in range(num_micro_batches)]


def deal_equal_lengths(
    sequences: Sequence[PackedSequence], rank: int, num_ranks: int, micro_batch_size: int
) -> list[list[PackedSequence]]:
    """Return the micro-batches of one rank; the sequences of each are of like length.

    The micro-batches of one number are of like length on all ranks too, and the ranks take turns at
    the longest. The arguments are those of ``deal_sequences``.
    """
    block = num_ranks * micro_batch_size
    num_micro_batches, rest = divmod(len(sequences), block)
    assert rest == 0
    own = []
    for number in range(num_micro_batches):
        place = rank if number % 2 == 0 else num_ranks - 1 - rank
        first = number * block + place * micro_batch_size
        own.append(list(sequences[first : first + micro_batch_size]))
    return own


def sequence_length(num_tokens: Sequence[int], multiple: int, seq_length: int) -> int:
    """Return how long the sequences of a variable micro-batch are, in tokens.

    Args:
        num_tokens: tokens of the samples of each sequence.
        multiple: the length is rounded up to one of this.
        seq_length: the longest sequence; no sequence of samples may need more.
    """
    longest = max(num_tokens)
    assert longest <= seq_length
    return min(max(-(-longest // multiple), 1) * multiple, seq_length)


def _check_fit(lengths: Sequence[int], seq_length: int) -> None:
    longest = max(lengths, default=0)
    if longest > seq_length:
        raise ValueError(
            f"a sample of {longest} tokens does not fit a sequence of {seq_length}; raise "
            "--seq-length or pass --overlong-samples truncate"
        )


def truncate(sample: TokenizedSample, seq_length: int) -> TokenizedSample:
    """Cut answer tokens from the right until the sample fits a sequence.

    Raises:
        ValueError: an image would be cut, or nothing to learn would be left.
    """
    if len(sample) <= seq_length:
        return sample
    needed = _shortest_cut(sample)
    if needed > seq_length:
        raise ValueError(
            f"sample {sample.key} has {len(sample)} tokens and its image and the start of its "
            f"answer need {needed} of them, more than a sequence of {seq_length}; raise "
            f"--seq-length to {needed} or remove the sample"
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
        image = term.queries if term.task is Task.GENERATION else term.keys
        needed = max(needed, int(image[-1]) + 1)
    if sample.task is Task.GENERATION and len(ends):
        # The target is the image, also where a dropped prompt leaves no roles.
        needed = max(needed, int(ends.max()))
    return needed
