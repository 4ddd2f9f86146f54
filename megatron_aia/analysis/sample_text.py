"""A sample as the model reads it, in lines for people."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from megatron_aia.aia.roles import Task, key_task, query_task
from megatron_aia.analysis.records import task_name
from megatron_aia.data.sample import TokenizedSample
from megatron_aia.data.sample_reader import PlacedSample
from megatron_aia.data.token_names import TokenKind, TokenNames
from megatron_aia.models.spec import SampleEncoder
from megatron_aia.shards.raw_sample import IMAGE_TAG, RawSample

_COLORS = {Task.GENERATION: "34", Task.UNDERSTANDING: "33"}
_QUERY_STYLE = "1"
_LABEL_STYLE = "4"


@dataclass(frozen=True)
class TokenSpan:
    """Neighbouring tokens that are shown together: an image, a special token, or a text."""

    kind: TokenKind
    start: int
    stop: int
    """Positions in the sample."""


def split_spans(sample: TokenizedSample, names: TokenNames) -> Iterator[TokenSpan]:
    """Cut a sample where the kind of token changes, and texts also where role or label do."""

    def look(position: int) -> tuple[object, ...]:
        kind = names.kind(int(sample.tokens[position]))
        if kind is TokenKind.IMAGE:
            return (kind,)
        if kind is TokenKind.SPECIAL:
            return kind, position
        return kind, int(sample.roles[position]), bool(sample.label_weights[position] > 0)

    for _, positions in groupby(range(len(sample)), look):
        numbers = list(positions)
        kind = names.kind(int(sample.tokens[numbers[0]]))
        yield TokenSpan(kind, numbers[0], numbers[-1] + 1)


def format_sample(
    placed: PlacedSample, position: int, origin: str, prompt: SampleEncoder, in_color: bool
) -> str:
    """Return a head of a few lines and a line for each span: positions, marks, contents.

    A mark names a role or a label; where it holds for a part of a span only, its count stands
    before it.

    Args:
        placed: what stands at ``position``.
        position: in the order of the run.
        origin: folder and source of the sample.
        prompt: wrote the tokens.
        in_color: for a terminal: blue for roles of generation and yellow for those of
            understanding, queries bold, labels underlined.
    """
    sample = placed.tokens
    lines = [
        f"position {position}: {task_name(sample.task)}, {len(sample)} tokens, "
        f"{int((sample.label_weights > 0).sum())} labels",
        f"  sample {sample.key} of {origin}, epoch {placed.address.epoch}",
    ]
    lines += [f"  image {n}: {text}" for n, text in enumerate(describe_images(placed.raw))]
    spans = list(split_spans(sample, prompt.token_names))
    marks = [_marks(sample, span) for span in spans]
    width = max(map(len, marks), default=0)
    for span, mark in zip(spans, marks, strict=True):
        last = span.stop - 1
        place = str(last) if last == span.start else f"{span.start}..{last}"
        contents = _contents(sample, span, prompt)
        if in_color:
            contents = _paint(sample, span, contents)
        lines.append(f"{place:>13}  {mark:{width}}  {contents}")
    return "\n".join(lines)


def describe_images(raw: RawSample) -> list[str]:
    """Return a line for each image: how it is stored, its size, and what the model does with it."""
    lines = []
    roles = [turn.role for turn in raw.turns for _ in range(turn.text.count(IMAGE_TAG))]
    for role, image in zip(roles, raw.images, strict=True):
        use = "to draw" if role == "gpt" else "to look at"
        if isinstance(image, np.ndarray):
            size = f"{image.shape[0]} x {image.shape[1]} codes"
        else:
            width, height = image.pixel_size()
            size = f"picture of {width} x {height} pixels"
        lines.append(f"{size}, {use}")
    return lines


def _contents(sample: TokenizedSample, span: TokenSpan, prompt: SampleEncoder) -> str:
    tokens = [int(token) for token in sample.tokens[span.start : span.stop]]
    names = prompt.token_names
    if span.kind is TokenKind.SPECIAL:
        return names.special[tokens[0]]
    if span.kind is TokenKind.TEXT:
        return prompt.tokenizer.decode(tokens).replace("\n", "\\n")
    counts = Counter(names.others_in_images.get(token, "codes") for token in tokens)
    return f"[image: {', '.join(f'{count} {name}' for name, count in counts.items())}]"


def _marks(sample: TokenizedSample, span: TokenSpan) -> str:
    roles = sample.roles[span.start : span.stop]
    is_label = sample.label_weights[span.start : span.stop] > 0
    masks = {"label": is_label}
    for task in _COLORS:
        masks[f"query {task_name(task)}"] = query_task(roles) == task
        masks[f"key {task_name(task)}"] = key_task(roles) == task
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    whole = span.stop - span.start
    return ", ".join(
        name if count == whole else f"{count} {name}" for name, count in counts.items() if count
    )


def _paint(sample: TokenizedSample, span: TokenSpan, text: str) -> str:
    roles = sample.roles[span.start : span.stop]
    styles = [
        color
        for task, color in _COLORS.items()
        if ((query_task(roles) == task) | (key_task(roles) == task)).any()
    ][:1]
    styles += [_QUERY_STYLE] * bool(query_task(roles).any())
    styles += [_LABEL_STYLE] * bool((sample.label_weights[span.start : span.stop] > 0).any())
    return f"\x1b[{';'.join(styles)}m{text}\x1b[0m" if styles else text
