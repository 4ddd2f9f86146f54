"""Evaluate a checkpoint: draw or answer a benchmark, and read what its own scorer says.

python tools/evaluate.py --load RUN --benchmark geneval --data evaluation_metadata.jsonl \
    --output DIR [--score-command "..."]
python tools/evaluate.py --load RUN --benchmark lmms --lmms-eval ENV/bin/lmms-eval --output DIR

Alone or under torchrun, as tools/generate.py. A command that was stopped goes on where it was.
docs/evaluate.md has a command for each benchmark.
"""

import sys
from collections.abc import Sequence
from typing import Optional

from megatron_aia.cli import is_rank_0, one_line_errors, world_size
from megatron_aia.config.flags import parse_options
from megatron_aia.evaluation.options import EvaluateOptions
from megatron_aia.runtime.log import quiet_imports
from megatron_aia.runtime.versions import check_versions


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    with one_line_errors(ValueError, OSError):
        options = parse_options(EvaluateOptions, arguments, __doc__, prints=is_rank_0())
        check_versions()
        quiet_imports()
        from megatron_aia.evaluation.command import evaluate  # heavy: torch and megatron-core

        found = evaluate(options, world_size(), is_rank_0())
        if is_rank_0():
            print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
