"""Whether a checkpoint fits a run; each check raises ValueError naming the setting and a remedy."""

from pathlib import Path
from typing import Any

from megatron_aia.runtime.versions import (
    COMMON_FILE,
    megatron_core_version,
    needs_common_file,
)


def check_architecture(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare two architectures."""
    for name, value in wanted.items():
        if name in saved and saved[name] != value:
            flag = "--" + name.replace("_", "-")
            raise ValueError(
                f"{path} is of another model: its {flag} is {saved[name]}, this run's is {value}; "
                "use the flags or the preset it was made with"
            )


def check_megatron_core(path: Path, saved: str) -> None:
    """Find a checkpoint that is too new for this megatron-core, or has lost a file it needs.

    Args:
        path: one checkpoint.
        saved: version of megatron-core that wrote it; "" if it does not say.
    """
    ours = megatron_core_version()
    if not needs_common_file(ours) or (path / COMMON_FILE).is_file():
        return
    if saved and needs_common_file(saved):
        raise ValueError(f"{path} has lost its file {COMMON_FILE}; use another checkpoint")
    raise ValueError(
        f"{path} was written by megatron-core {saved or '0.19 or newer'}, and {ours} cannot read "
        "it; load it with 0.19 or newer, or convert it to Hugging Face there and back from it here"
    )


def check_optimizer(path: Path, saved: str, wanted: str) -> None:
    """Compare two kinds of optimizer."""
    if saved != wanted:
        switch = {"distributed": "--use-distributed-optimizer"}
        raise ValueError(
            f"{path} holds the state of a {saved} optimizer, this run has a {wanted} one; pass "
            f"{switch.get(saved, '--no-use-distributed-optimizer')}, or --finetune to start from "
            "its weights alone"
        )


def check_freeze(path: Path, saved: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Compare which parameters the optimizer has no state of."""
    if set(saved) != set(wanted):
        before, now = (" ".join(patterns) or "no pattern" for patterns in (saved, wanted))
        raise ValueError(
            f"{path} was trained with --freeze {before}, this run has {now}: the optimizer's state "
            "does not fit; pass the same, or --finetune to start from its weights alone"
        )
