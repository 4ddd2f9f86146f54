"""Target intensity and Huber threshold of every layer (Table 2), read from a small YAML file.

A profile belongs to the depth it was measured at; a model of another depth maps its layers onto it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from megatron_aia.aia.roles import AIA_TASK_OF_NAME, Task

SHIPPED_FOLDER = Path(__file__).parent / "profiles"

Granularity = Literal["stage", "layer"]

_TASK_NAMES = " and ".join(AIA_TASK_OF_NAME)


@dataclass(frozen=True)
class Stage:
    """Layers ``first`` to ``last`` (both included, 0-based) that share a target and threshold."""

    first: int
    last: int
    target: float
    delta: float


@dataclass(frozen=True)
class LayerTargets:
    """T[task, l] and delta[task, l] of Eq. 2 for every layer of a model: float64 ``[layers]``."""

    target: Mapping[Task, np.ndarray]
    delta: Mapping[Task, np.ndarray]


@dataclass(frozen=True)
class Profile:
    """A target profile: for each task its stages, and the measured curve if there is one."""

    name: str
    depth: int
    """Decoder layers of the model the profile was made for."""
    source: str
    """Where the numbers come from."""
    stages: Mapping[Task, tuple[Stage, ...]]
    """Ascending, without gap or overlap, layers 0 to depth - 1."""
    curve: Mapping[Task, np.ndarray] = field(default_factory=dict)
    """A teacher's measured intensity of each layer, float64 ``[depth]``; may lack a task."""

    def resolve(self, num_layers: int, granularity: Granularity = "stage") -> LayerTargets:
        """Give every layer of a model its target and threshold.

        Layer l of L takes the values of profile layer ``round(l * (depth - 1) / (L - 1))``, halves
        rounded up: the first layer maps to the first, the last to the last, and equal depths map
        one to one. A model of a single layer takes layer 0.

        Args:
            num_layers: decoder layers L of the whole model.
            granularity: ``stage`` takes the target of the layer's stage; ``layer`` takes the
                measured curve (ablation). The threshold is the stage's in both cases.

        Raises:
            ValueError: ``layer`` was asked of a profile that lacks the curve of a task.
        """
        layers = _profile_layers(num_layers, self.depth)
        target: dict[Task, np.ndarray] = {}
        delta: dict[Task, np.ndarray] = {}
        for task, stages in self.stages.items():
            lengths = [stage.last - stage.first + 1 for stage in stages]
            if granularity == "layer":
                by_layer = self._curve_of(task)
            else:
                by_layer = np.repeat([stage.target for stage in stages], lengths)
            target[task] = by_layer[layers].astype(np.float64)
            delta[task] = np.repeat([stage.delta for stage in stages], lengths)[layers]
        return LayerTargets(target, delta)

    def describe(self, num_layers: int) -> str:
        """Return one line for the log; it says when the layers are remapped."""
        line = f"profile {self.name} for {self.depth} layers: {self.source}"
        if num_layers == self.depth:
            return line
        layers = _profile_layers(num_layers, self.depth)
        shown = ", ".join(f"{layer}->{layers[layer]}" for layer in _ends_and_middle(num_layers))
        return f"{line}; mapped onto {num_layers} layers by relative depth ({shown})"

    def _curve_of(self, task: Task) -> np.ndarray:
        if task not in self.curve:
            raise ValueError(
                f"profile {self.name}: curve.{task.name.lower()} is missing, so there are no "
                "layer targets; add the measured curve or pass --aia-targets stage"
            )
        return self.curve[task]


def load_profile(name_or_path: str) -> Profile:
    """Read a shipped profile by its name, or a YAML file by its path.

    Raises:
        ValueError: no such profile, or a field is missing or wrong; the message names the file,
            the field, its value and the remedy.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED_FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in SHIPPED_FOLDER.glob("*.yaml")))
        raise ValueError(
            f"profile {name_or_path} does not exist; pass one of {shipped}, or a .yaml file"
        )
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a YAML file: {reason}") from error
    return _Reader(path).profile(document)


class _Reader:
    """Turns a YAML document into a profile; every complaint names the file and the field."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def profile(self, document: Any) -> Profile:
        top = self._mapping("the file", document)
        allowed = {"name", "depth", "source", "stages", "curve"}
        for key in top:
            if key not in allowed:
                raise self._error(str(key), top[key], f"use only {', '.join(sorted(allowed))}")
        depth = self._layer("depth", top.get("depth"))
        if depth == 0:
            raise self._error("depth", depth, "give the decoder layers of the measured model")
        stages = self._mapping("stages", top.get("stages"))
        curve = self._mapping("curve", top.get("curve", {}))
        for name in (*stages, *curve):
            if name not in AIA_TASK_OF_NAME:
                raise self._error("task", name, f"the tasks are {_TASK_NAMES}")
        for name in AIA_TASK_OF_NAME:
            if name not in stages:
                raise self._error(f"stages.{name}", None, f"give the stages of {_TASK_NAMES}")
        return Profile(
            name=str(top.get("name", self.path.stem)),
            depth=depth,
            source=str(top.get("source", self.path)),
            stages={
                task: self._stages(f"stages.{name}", stages[name], depth)
                for name, task in AIA_TASK_OF_NAME.items()
            },
            curve={
                AIA_TASK_OF_NAME[name]: self._curve(f"curve.{name}", values, depth)
                for name, values in curve.items()
            },
        )

    def _stages(self, label: str, entries: Any, depth: int) -> tuple[Stage, ...]:
        stages = []
        next_layer = 0
        for index, entry in enumerate(self._list(label, entries)):
            stage = self._stage(f"{label}[{index}]", entry)
            if stage.first != next_layer:
                kind = "a gap" if stage.first > next_layer else "an overlap"
                raise self._error(
                    f"{label}[{index}].first",
                    stage.first,
                    f"{kind}; the stage must start at layer {next_layer}",
                )
            next_layer = stage.last + 1
            stages.append(stage)
        if next_layer != depth:
            last = next_layer - 1
            raise self._error(f"{label}[-1].last", last, f"must be {depth - 1}, the last layer")
        return tuple(stages)

    def _stage(self, label: str, entry: Any) -> Stage:
        values = self._mapping(label, entry)
        for key in values:
            if key not in ("first", "last", "target", "delta"):
                raise self._error(f"{label}.{key}", values[key], "remove this unknown field")
        first = self._layer(f"{label}.first", values.get("first"))
        last = self._layer(f"{label}.last", values.get("last"))
        if last < first:
            raise self._error(f"{label}.last", last, f"must be at least first = {first}")
        delta = self._number(f"{label}.delta", values.get("delta"))
        if delta < 0:
            raise self._error(f"{label}.delta", delta, "must not be negative")
        return Stage(first, last, self._share(f"{label}.target", values.get("target")), delta)

    def _curve(self, label: str, values: Any, depth: int) -> np.ndarray:
        curve = [self._share(f"{label}[{i}]", v) for i, v in enumerate(self._list(label, values))]
        if len(curve) != depth:
            raise self._error(label, f"{len(curve)} values", f"give one for each of {depth} layers")
        return np.array(curve, dtype=np.float64)

    def _share(self, label: str, value: Any) -> float:
        number = self._number(label, value)
        if not 0 <= number <= 1:
            raise self._error(label, value, "an intensity lies between 0 and 1")
        return number

    def _number(self, label: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise self._error(label, value, "give a number")
        return float(value)

    def _layer(self, label: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._error(label, value, "give a whole number, 0 or more")
        return value

    def _list(self, label: str, value: Any) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._error(label, value, "give a list")
        return value

    def _mapping(self, label: str, value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise self._error(label, value, "give fields and values")
        return value

    def _error(self, label: str, value: Any, remedy: str) -> ValueError:
        problem = "is missing" if value is None else f"is {value!r}"
        return ValueError(f"{self.path}: {label} {problem}; {remedy}")


def _profile_layers(num_layers: int, depth: int) -> np.ndarray:
    """Profile layer of each model layer, int64 ``[num_layers]``; whole-number rounding."""
    if num_layers == 1:
        return np.zeros(1, np.int64)
    span = num_layers - 1
    return (2 * np.arange(num_layers) * (depth - 1) + span) // (2 * span)


def _ends_and_middle(num_layers: int) -> list[int]:
    return sorted({0, num_layers // 2, num_layers - 1})
