"""Mixture files: sources by name, and phases with their weights; see docs/loading.md."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_aia.aia.roles import Task
from megatron_aia.config.files import did_you_mean
from megatron_aia.config.locations import check_location, is_url
from megatron_aia.config.yaml_file import load_mapping
from megatron_aia.data.mixture_plan import MixturePlan, MixtureSource
from megatron_aia.data.phases import Phase

_EXAMPLE = "sources: {drawing: {path: shards}}"
_TASKS = tuple(task.name.lower() for task in Task)


def read_mixture_file(path: str) -> MixturePlan:
    """Read a mixture file. Its folders are not looked at.

    Raises:
        ValueError: the file cannot be read, or a key or a value is wrong; names file, key, value
            and remedy.
    """
    content = load_mapping(path, path, _EXAMPLE)
    _check_keys(path, content, required=("sources", "phases"))
    entries = content["sources"]
    if not isinstance(entries, dict) or not entries:
        raise ValueError(f"{path}: sources must be names with folders, as in `{_EXAMPLE}`")
    sources = tuple(_read_source(path, name, entry) for name, entry in entries.items())
    listed = content["phases"]
    if not isinstance(listed, list) or not listed:
        example = f"phases: [{{weights: {{{sources[0].name}: 1}}}}]"
        raise ValueError(f"{path}: phases must be a list, as in `{example}`")
    phases = []
    for number, entry in enumerate(listed, start=1):
        place = f"{path}: phase {number}"
        phases.append(_read_phase(place, entry, [source.name for source in sources]))
        if phases[-1].num_samples is None and number < len(listed):
            raise ValueError(
                f"{place}: samples is missing, and phase {number + 1} follows; give its length, "
                "as in `samples: 100000`"
            )
    return MixturePlan(sources, tuple(phases))


def _read_source(path: str, name: Any, entry: Any) -> MixtureSource:
    place = f"{path}: sources: {name}"
    if not isinstance(name, str):
        raise ValueError(f"{place} is not a name; write it in quotes")
    entry = {"path": entry} if isinstance(entry, str) else entry
    _check_keys(place, entry, required=("path",), optional=("task", "limit"))
    folder, task, limit = entry["path"], entry.get("task"), entry.get("limit")
    if not isinstance(folder, str) or not folder:
        raise ValueError(f"{place}: path must be a data folder, not {folder!r}")
    if task is not None and task not in _TASKS:
        raise ValueError(f"{place}: task {task!r} is none; use {', '.join(_TASKS)}")
    if limit is not None and (not _is_whole(limit) or limit < 1):
        raise ValueError(f"{place}: limit must be a whole number from 1 on, not {limit!r}")
    if is_url(folder):
        try:
            check_location(folder)
        except ValueError as error:
            raise ValueError(f"{place}: path {error}") from None
    else:
        folder = str(Path(path).parent / folder)
    return MixtureSource(
        name, (folder,), None if task is None else Task[task.upper()], limit, place
    )


def _read_phase(place: str, entry: Any, names: list[str]) -> Phase:
    _check_keys(place, entry, required=("weights",), optional=("samples",))
    weights, num_samples = entry["weights"], entry.get("samples")
    if not isinstance(weights, dict) or not weights:
        raise ValueError(
            f"{place}: weights must be numbers by source, as in `weights: {{{names[0]}: 1}}`"
        )
    for name, weight in weights.items():
        if name not in names:
            hint = did_you_mean(str(name), names) or f"; use {', '.join(names)}"
            raise ValueError(f"{place}: weights: {name} is not among the sources{hint}")
        if not _is_whole(weight) or weight < 0:
            raise ValueError(
                f"{place}: weights: {name} must be a whole number, not {weight!r}; for 0.7 and 0.3 "
                "write 7 and 3"
            )
    if not any(weights.values()):
        raise ValueError(f"{place}: weights are all 0; give one source 1 or more")
    if "samples" in entry and (not _is_whole(num_samples) or num_samples < 1):
        raise ValueError(
            f"{place}: samples must be a whole number from 1 on, not {num_samples!r}; leave the "
            "phase out, or in the last phase the key, which then goes on to the end of the run"
        )
    return Phase(tuple(weights.get(name, 0) for name in names), num_samples)


def _check_keys(
    place: str, entry: Any, required: Iterable[str], optional: Iterable[str] = ()
) -> None:
    known = [*required, *optional]
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected the keys {', '.join(known)}, not {entry!r}")
    for key in entry:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; use {', '.join(known)}"
            raise ValueError(f"{place}: unknown key {key}{hint}")
    for key in required:
        if key not in entry:
            raise ValueError(f"{place}: the key {key} is missing; add it")


def _is_whole(value: Any) -> bool:
    # A bool is an int to Python, but never what the writer of a number meant.
    return isinstance(value, int) and not isinstance(value, bool)
