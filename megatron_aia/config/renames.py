"""Names and values of settings that are spelled otherwise elsewhere, and what they mean here."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_aia.config.settings import flag

RENAMED: dict[str, str] = {}
"""Fields by the names they had in earlier versions."""

TAKEN_AS: dict[tuple[str, str], dict[str, str]] = {
    # Megatron-LM's values: its kernels that write the whole map of attention, and cuDNN's.
    ("attention_backend", "unfused"): {"attention_backend": "auto", "aia_method": "dense"},
    ("attention_backend", "local"): {
        "attention_backend": "auto",
        "aia_method": "dense",
        "transformer_impl": "local",
    },
    ("attention_backend", "fused"): {"attention_backend": "cudnn"},
}
"""A field and a value of Megatron-LM or of earlier versions, and the settings they stand for."""


def modern_values(values: Mapping[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a file under the names of today, and at most one note on them.

    Args:
        values: by field.
        name: of the file.

    Raises:
        ValueError: a setting is there under two names, with different values.
    """
    modern: dict[str, Any] = {}
    changed = []
    for old, value in values.items():
        meant, words = _meaning(old, value)
        if words:
            changed.append(words)
        for field, new in meant.items():
            if modern.setdefault(field, new) != new:
                raise ValueError(
                    f"{name}: {field} is {modern[field]} and, by another name, {new}; keep one"
                )
    return modern, [f"{name}: {', '.join(changed)}"] if changed else []


def modern_argv(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line in the names of today, and one note for every name that changed.

    Args:
        argv: with dashes inside the names of flags.

    Raises:
        ValueError: an old value stands for a flag that is there too.
    """
    modern: list[str] = []
    notes: list[str] = []
    words = deque(argv)
    while words:
        name, equals, value = words.popleft().partition("=")
        given = [name + equals + value]
        if not equals and words and not words[0].startswith("--"):
            value = words[0]
        negation = "no-" if name.startswith("--no-") else ""
        old = name.removeprefix(f"--{negation}").replace("-", "_")
        meant, changed = _meaning(old, value) if name.startswith("--") else ({}, "")
        if not changed:
            modern += given
            continue
        if (*meant.items(),) == ((RENAMED.get(old, old), value),):  # only the name is new
            modern.append(
                f"--{negation}{next(iter(meant)).replace('_', '-')}{given[0][len(name) :]}"
            )
            notes.append(f"{name} is now {modern[-1].partition('=')[0]}")
            continue
        if not equals:
            given.append(words.popleft())
        taken = [word for field, new in meant.items() for word in (flag(field), new)]
        clash = [other for other in taken[2::2] if other in argv]
        if clash:
            raise ValueError(
                f"{' '.join(given)} stands for {' '.join(taken)}, and {clash[0]} is there too; "
                "leave one of them out"
            )
        notes.append(f"{' '.join(given)} is taken as {' '.join(taken)}")
        modern += taken
    return modern, notes


def _meaning(old: str, value: Any) -> tuple[dict[str, Any], str]:
    """Return the settings that a name and a value stand for, and what to say if they changed."""
    field = RENAMED.get(old, old)
    meant: dict[str, Any] = {field: value}
    if isinstance(value, str):
        meant = dict(TAKEN_AS.get((field, value), meant))
    words = []
    if field != old:
        words.append(f"{old} is now {field}")
    if meant != {field: value}:
        after = " ".join(f"{name} {new}" for name, new in meant.items())
        words.append(f"{field} {value} is taken as {after}")
    return meant, ", ".join(words)
