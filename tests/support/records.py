"""Log records in which only what a test cares about is not a placeholder."""

from typing import Any

from megatron_aia.analysis.records import LogRecord

_PLACEHOLDERS: dict[str, Any] = {
    "train_iters": 100,
    "consumed_samples": 0,
    "seconds_per_iteration": 1.0,
    "tokens_per_second": 1.0,
    "learning_rate": 1.0,
    "grad_norm": 1.0,
    "skipped_iterations": 0,
    "total_skipped": 0,
    "loss": 1.0,
    "terms": {"ntp": 1.0},
    "losses": {"ntp": {}},
    "intensity": {},
    "target": {},
    "padding_fraction": 0.0,
}


def placeholder_record(iteration: int, **values: Any) -> LogRecord:
    """Return a record of ``iteration`` with ``values`` in place of placeholders."""
    return LogRecord(iteration=iteration, **{**_PLACEHOLDERS, **values})
