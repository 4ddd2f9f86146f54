"""Which tokens are queries and keys of an intensity (Eq. 1), as one integer a token.

A model's sample encoder writes the codes; everything after it works on the codes alone. Codes are
cut and packed like the tokens, so no code has to know where in a sequence its sample stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np


class Task(IntEnum):
    """What a sample teaches. GENERATION and UNDERSTANDING are also the tasks of an AIA term."""

    TEXT = 0
    GENERATION = 1
    UNDERSTANDING = 2
    MIXED = 3


NUM_TASKS = len(Task)
AIA_TASKS = (Task.GENERATION, Task.UNDERSTANDING)
AIA_TASK_OF_NAME = {task.name.lower(): task for task in AIA_TASKS}
"""By its name in files."""

_QUERY_BITS = 0b0011
_KEY_SHIFT = 2


def query_code(task: Task) -> int:
    """Return the code of a query token of ``task``."""
    return int(task)


def key_code(task: Task) -> int:
    """Return the code of a key token of ``task``; add it to a query code for a token that is
    both."""
    return int(task) << _KEY_SHIFT


def query_task(roles: np.ndarray) -> np.ndarray:
    """Return the task of which each token is a query; 0 for none."""
    return roles & _QUERY_BITS


def key_task(roles: np.ndarray) -> np.ndarray:
    """Return the task of which each token is a key; 0 for none."""
    return roles >> _KEY_SHIFT


@dataclass(frozen=True)
class AIATerm:
    """One intensity I[s, .]: the queries and keys of one task in one packed sample.

    ``queries`` and ``keys`` are ascending int64 positions in the sequence; neither is empty.
    """

    task: Task
    queries: np.ndarray
    keys: np.ndarray


@dataclass(frozen=True)
class Segment:
    """One packed sample: positions ``[start, stop)`` of sequence ``batch_index``, its terms."""

    batch_index: int
    start: int
    stop: int
    terms: tuple[AIATerm, ...] = ()
    position: int = 0
    """Of the sample in the order of the run; seeds what is drawn at random for it."""


def without_terms(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Return the same samples with nothing to measure."""
    return tuple(replace(segment, terms=()) for segment in segments)


def find_terms(roles: np.ndarray, start: int = 0) -> tuple[AIATerm, ...]:
    """Read the terms of one sample from its role codes.

    Args:
        roles: uint8 ``[n]``, one code a token of the sample.
        start: position of the sample's first token in the sequence; added to every index.

    Returns:
        A term for each task with at least one query and at least one key that the causal mask lets
        one of the queries see. A task without such a pair is inactive and has no term.
    """
    terms = []
    for task in AIA_TASKS:
        queries = np.flatnonzero(query_task(roles) == task)
        keys = np.flatnonzero(key_task(roles) == task)
        if len(queries) and len(keys) and keys[0] <= queries[-1]:
            terms.append(AIATerm(task, queries + start, keys + start))
    return tuple(terms)
