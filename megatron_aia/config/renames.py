"""Names and values of settings that are spelled otherwise elsewhere, and what they mean here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_aia.config.settings import flag

RENAMED: dict[str, str] = {
    "aia_method": "aia_attention",
    "aia_probe_rows": "aia_sampled_queries",
    "aia_sets": "aia_query_key_sets",
    "blend": "data_path",
    "keep_checkpoints": "save_total_limit",
    "max_damaged_samples": "max_corrupt_samples",
    "ntp_normalizer": "loss_normalization",
    "prompt_drop": "cfg_drop_prob",
    "rebase_data": "reset_data",
}
"""Fields by the names they had in earlier versions."""

TAKEN_AS: dict[tuple[str, str], dict[str, str]] = {
    # Megatron-LM's values: its kernels that write the whole map of attention, and cuDNN's.
    ("attention_backend", "unfused"): {"attention_backend": "auto", "aia_attention": "eager"},
    ("attention_backend", "local"): {
        "attention_backend": "auto",
        "aia_attention": "eager",
        "transformer_impl": "local",
    },
    ("attention_backend", "fused"): {"attention_backend": "cudnn"},
    # Of earlier versions.
    ("aia_attention", "dense"): {"aia_attention": "eager"},
    ("aia_attention", "rectangle"): {"aia_attention": "flash"},
    ("aia_attention", "probe"): {"aia_attention": "sampled"},
    ("aia_preset", "janus_released_code"): {"aia_preset": "released_code"},
    ("aia_query_key_sets", "intended"): {"aia_query_key_sets": "paper"},
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
        field = RENAMED.get(old, old)
        meant = _stands_for(field, value)
        if field != old:
            changed.append(f"{old} is now {field}")
        elif meant != {field: value}:
            after = " ".join(f"{name} {new}" for name, new in meant.items())
            changed.append(f"{field} {value} is taken as {after}")
        for found, new in meant.items():
            # Earlier versions wrote both `data_path` and `blend`, one of them empty.
            if found in modern and _is_empty(new):
                continue
            if not _is_empty(modern.get(found)) and modern[found] != new:
                raise ValueError(
                    f"{name}: {found} is {modern[found]} and, by another name, {new}; keep one"
                )
            modern[found] = new
    return modern, [f"{name}: {', '.join(changed)}"] if changed else []


def modern_argv(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line in the names of today, and one note for every flag that changed.

    Args:
        argv: with dashes inside the names of flags.

    Raises:
        ValueError: what an old flag or value stands for is there too.
    """
    modern: list[str] = []
    notes: list[str] = []
    for words in _flags_with_values(argv):
        meant = _modern_words(words)
        modern += meant
        if meant == words:
            continue
        clash = (_names(meant) - _names(words)) & _names(argv)
        said = f"{' '.join(words)} is taken as {' '.join(meant)}"
        if clash:
            raise ValueError(f"{said}, and {min(clash)} is there too; leave one of them out")
        notes.append(said)
    return modern, notes


def _names(words: Sequence[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def _flags_with_values(argv: Sequence[str]) -> Iterator[list[str]]:
    """Cut a command line before every flag."""
    words: list[str] = []
    for word in argv:
        if word.startswith("--") and words:
            yield words
            words = []
        words.append(word)
    if words:
        yield words


def _modern_words(words: list[str]) -> list[str]:
    """Return a flag and its values in the names of today; unchanged if they are."""
    name, equals, value = words[0].partition("=")
    if not name.startswith("--"):
        return words
    negation = "no-" if name.startswith("--no-") else ""
    old = name.removeprefix(f"--{negation}").replace("-", "_")
    field = RENAMED.get(old, old)
    values = [value] if equals else words[1:]
    if len(values) == 1 and (field, values[0]) in TAKEN_AS:
        meant = TAKEN_AS[field, values[0]]
        return [word for name, new in meant.items() for word in (flag(name), new)]
    if field == old:
        return words
    return [f"--{negation}{field.replace('_', '-')}{equals}{value}", *words[1:]]


def _stands_for(field: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str) and (field, value) in TAKEN_AS:
        return dict(TAKEN_AS[field, value])
    return {field: value}


def _is_empty(value: Any) -> bool:
    return value is None or value in ([], ())
