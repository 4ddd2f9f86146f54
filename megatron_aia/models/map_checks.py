"""Whether a weight map fits the tensors it reads and the model it fills."""

from collections.abc import Callable, Sequence

from megatron_aia.models.param_map import ParamMap, Shape


def check_sources(
    table: dict[str, ParamMap], found: dict[str, Shape], passthrough: Callable[[str], bool]
) -> None:
    """Check that a checkpoint holds exactly what ``table`` needs and what may pass through.

    Args:
        table: the model's map.
        found: names and shapes of the checkpoint's tensors.
        passthrough: tells tensors that are kept aside.

    Raises:
        ValueError: a tensor is missing, is not known, or has another shape.
    """
    needed = {name: shape for entry in table.values() for name, shape in entry.sources.items()}
    missing = sorted(needed.keys() - found.keys())
    if missing:
        raise ValueError(f"the checkpoint lacks {_some(missing)}; its configuration says it has it")
    unknown = sorted(name for name in found.keys() - needed.keys() if not passthrough(name))
    if unknown:
        raise ValueError(f"the checkpoint holds {_some(unknown)}, which no part of the model takes")
    for name, shape in needed.items():
        if found[name] != shape:
            raise ValueError(
                f"{name} has shape {list(found[name])}, its configuration says {list(shape)}"
            )


def check_targets(table: dict[str, ParamMap], parameters: dict[str, Shape]) -> None:
    """Check that ``table`` sets every parameter of the model, in its shape.

    Raises:
        ValueError: a parameter would stay unset, or a map makes something else.
    """
    made = {name: entry.target_shape for name, entry in table.items()}
    if made != parameters:
        wrong = sorted(name for name, _ in made.items() ^ parameters.items())
        raise ValueError(f"the weight map and the model disagree on {_some(sorted(set(wrong)))}")


def _some(names: Sequence[str]) -> str:
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{others}"
