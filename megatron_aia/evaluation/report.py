"""One table of results and published numbers: as text, Markdown, and bars. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_aia.evaluation.references import Reference
from megatron_aia.evaluation.result import COLUMNS, Metric, Result
from megatron_aia.runtime.optional import import_optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIGITS = {"GenEval": 2, "MME-P": 1, "DPG": 2}


@dataclass(frozen=True)
class Cell:
    """One place of the table."""

    text: str
    value: float | None = None
    """What a bar shows: of a whole benchmark only."""


@dataclass(frozen=True)
class Row:
    """A model, or a line of a paper."""

    name: str
    kind: str
    """``measured`` here, or ``reference``."""
    cells: dict[str, Cell]
    notes: tuple[str, ...]
    """What the numbers cannot be compared without."""


def row_of_results(name: str, results: Sequence[Result]) -> Row:
    """Bring together what several commands found of one checkpoint.

    Raises:
        ValueError: two of them have the same metric, or they are of two checkpoints.
    """
    cells: dict[str, Cell] = {}
    notes = []
    checkpoints = {str(result.conditions.get("checkpoint")) for result in results}
    if len(checkpoints) > 1:
        raise ValueError(f"{name} holds results of several checkpoints: {sorted(checkpoints)}")
    for result in results:
        for metric in result.metrics:
            if metric.name in cells:
                raise ValueError(f"{name} holds {metric.name} twice; give each its own row")
            cells[metric.name] = _cell(metric)
            notes.append(_note(metric, result))
    return Row(name, "measured", cells, tuple(notes))


def _cell(metric: Metric) -> Cell:
    if metric.value is None:
        return Cell("not judged")
    number = _number(metric.name, metric.value)
    if metric.status == "incomplete":
        return Cell(f"{number} (incomplete, {metric.judged} of {metric.of})")
    return Cell(number, metric.value)


def _note(metric: Metric, result: Result) -> str:
    said = [f"judge: {metric.judge or 'none'}"]
    for name in ("iteration", "prompts", "guidance_scale", "system_prompt"):
        if result.conditions.get(name) is not None:
            said.append(f"{name}: {result.conditions[name]}")
    return f"{metric.name} of {result.conditions.get('checkpoint')}; " + ", ".join(said)


def row_of_reference(reference: Reference) -> Row:
    """Return a published row."""
    cells = {
        column: Cell(_number(column, value), value) for column, value in reference.values.items()
    }
    note = f"{reference.source}; {reference.conditions}"
    return Row(f"{reference.name} (reference)", "reference", cells, (note,))


def _number(column: str, value: float) -> str:
    return f"{value:.{_DIGITS.get(column, 1)}f}"


def table(rows: Sequence[Row], markdown: bool = False) -> str:
    """Return the table, with a note for each number's conditions below."""
    columns = [column for column in COLUMNS if any(column in row.cells for row in rows)]
    lines = [["", *columns]]
    lines += [[row.name, *(_text(row, column) for column in columns)] for row in rows]
    notes = [f"[{number}] {note}" for number, note in enumerate(_notes(rows), start=1)]
    if markdown:
        body = [f"| {' | '.join(line)} |" for line in lines]
        body.insert(1, "|" + "---|" * len(lines[0]))
        return "\n".join([*body, "", *(f"- {note}" for note in notes)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = [
        "  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*body, "", *notes])


def _notes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(f"{row.name}: {note}" for row in rows for note in row.notes))


def _text(row: Row, column: str) -> str:
    return row.cells[column].text if column in row.cells else "-"


def table_of_result(result: Result) -> str:
    """Return what one command found, a line a metric."""
    lines = []
    for metric in result.metrics:
        lines.append(f"{metric.name:15}{_cell(metric).text}")
        lines += [f"  {name:13}{value:.4g}" for name, value in metric.parts.items()]
    for task, found in (result.conditions.get("other_tasks") or {}).items():
        lines += [f"{task}: {name} {value:.4g}" for name, value in found.items()]
    return "\n".join(lines)


def draw_bars(rows: Sequence[Row], path: Path) -> None:
    """Draw the numbers of whole benchmarks: one group of bars a column.

    Raises:
        ValueError: there is no number to draw.
    """
    columns = [c for c in COLUMNS if any(_value(row, c) is not None for row in rows)]
    if not columns:
        raise ValueError("nothing is judged as a whole: there are no bars to draw")
    figure = _bars(rows, columns)
    figure.savefig(path)


def _bars(rows: Sequence[Row], columns: Sequence[str]) -> "Figure":
    figure_class = import_optional("matplotlib.figure", "demo").Figure
    figure = figure_class(
        figsize=(2.2 * len(columns) + 2, 3 + 0.2 * len(rows)), dpi=120, layout="constrained"
    )
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for column, axis in zip(columns, axes, strict=True):
        for place, row in enumerate(rows):
            value = _value(row, column)
            if value is None:
                axis.text(place, 0, "-", ha="center", va="bottom")
                continue
            hatch = "//" if row.kind == "reference" else None
            axis.bar(place, value, color=f"C{place % 10}", hatch=hatch, label=row.name)
            axis.text(place, value, _number(column, value), ha="center", va="bottom", fontsize=7)
        axis.set_title(column)
        axis.set_xticks([])
        axis.set_xlim(-0.6, len(rows) - 0.4)
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", fontsize=7)
    return figure


def _value(row: Row, column: str) -> float | None:
    return row.cells[column].value if column in row.cells else None
