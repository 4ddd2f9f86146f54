"""Which samples of a data folder are measured, and how a model of this project reads one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megatron_aia.aia.roles import AIA_TASKS, AIATerm, Task, find_terms, key_task, query_task
from megatron_aia.analysis.records import task_name
from megatron_aia.data.batch import with_loaded_images
from megatron_aia.data.sample import SampleEncoder, TokenizedSample
from megatron_aia.shards.raw_sample import CorruptSampleError, RawSample

_NO_QUERY = {Task.UNDERSTANDING: "no answer", Task.GENERATION: "no drawn image"}
_NO_KEY = {Task.UNDERSTANDING: "no image", Task.GENERATION: "no prompt"}


class InactiveSampleError(ValueError):
    """A sample has no intensity; the text is the reason, by which such samples are counted."""


class SampleFolder(Protocol):
    """Samples by number: a ``ShardIndex``, or records that are no shards."""

    @property
    def folder(self) -> str:
        """Path, for a reader."""

    @property
    def tasks(self) -> np.ndarray:
        """uint8 ``[samples]``, values of ``Task``."""

    def key(self, number: int) -> str:
        """Return a sample's name."""

    def read(self, number: int, codebook_size: int) -> RawSample:
        """Read a sample; errors are those of ``ShardIndex``."""


@dataclass(frozen=True)
class ReadSample:
    """A sample as a model of this project reads it, with the term that is measured."""

    tokens: TokenizedSample
    term: AIATerm
    """Positions count from the first token of the sample."""
    images: int
    """Looked at or drawn."""


def choose_samples(
    index: SampleFolder, count: int, asked: Sequence[Task], possible: Sequence[Task] = AIA_TASKS
) -> dict[Task, list[int]]:
    """Return the numbers of ``count`` samples of each task, spread evenly over the folder.

    Args:
        index: of the folder.
        count: of each task, at most.
        asked: tasks; none for all that are possible and that the folder has.
        possible: what the model can be measured on.

    Raises:
        ValueError: a task is asked for that is not possible or has no sample, or none has one.
    """
    for task in asked:
        if task not in possible:
            names = " ".join(task_name(each) for each in possible)
            raise ValueError(f"--task {task_name(task)}: this model is measured on {names} alone")
    found = {task: np.flatnonzero(index.tasks == task) for task in asked or possible}
    for task, numbers in found.items():
        if asked and not len(numbers):
            raise ValueError(f"{index.folder} holds no samples of {task_name(task)}")
    chosen = {task: _spread(numbers, count) for task, numbers in found.items() if len(numbers)}
    if not chosen:
        names = " or ".join(task_name(task) for task in possible)
        raise ValueError(f"{index.folder} holds no samples of {names}")
    return chosen


def _spread(numbers: np.ndarray, count: int) -> list[int]:
    count = min(count, len(numbers))
    return [int(number) for number in numbers[np.arange(count) * len(numbers) // count]]


def read_sample(
    index: SampleFolder,
    number: int,
    task: Task,
    encoder: SampleEncoder,
    codebook_size: int,
    max_length: int,
) -> ReadSample:
    """Read a sample as in training, its prompt never dropped.

    Args:
        index: of the folder.
        number: of the sample.
        task: whose term is measured.
        encoder: of the model.
        codebook_size: of the model.
        max_length: most tokens; nothing is cut.

    Raises:
        InactiveSampleError: it is corrupt or too long, or has no query or no key.
        ValueError: it cannot be written as tokens, or its shard has changed.
        OSError: its shard cannot be read.
    """
    try:
        raw = index.read(number, codebook_size)
        tokens = with_loaded_images(encoder(raw, drop_prompt=False))
    except CorruptSampleError:
        raise InactiveSampleError("corrupt") from None
    if len(tokens) > max_length:
        raise InactiveSampleError(f"longer than {max_length} tokens")
    if not (query_task(tokens.roles) == task).any():
        raise InactiveSampleError(_NO_QUERY[task])
    if not (key_task(tokens.roles) == task).any():
        raise InactiveSampleError(_NO_KEY[task])
    for term in find_terms(tokens.roles):
        if term.task == task:
            return ReadSample(tokens, term, len(raw.images))
    raise InactiveSampleError("no query after a key")


def spans_of(term: AIATerm) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of a sample's image and of its prompt, int64 ``[n]`` each.

    The prompt of a drawn image is the keys of its term, all that stands before it; that of a
    question is what stands before the first answer and is no image.

    Raises:
        InactiveSampleError: there is no prompt.
    """
    if term.task == Task.GENERATION:
        return term.queries, term.keys
    prompt = np.setdiff1d(np.arange(term.queries[0]), term.keys)
    if not len(prompt):
        raise InactiveSampleError("no prompt")
    return term.keys, prompt
