"""Measure how much image and text tokens attend to each other, in every layer of a model.

python tools/measure_intensity.py --hf-path FOLDER --data-path SHARDS --output DIR [--samples 100]
torchrun --nproc-per-node 8 tools/measure_intensity.py --load RUN --data-path SHARDS --output DIR

Exact: a Transformers model with its own code, a checkpoint of this project in any layout. Then:
tools/compare_intensity.py, tools/fit_profile.py.
"""

import sys
from collections.abc import Sequence
from typing import Optional

from megatron_aia.cli import is_rank_0, one_line_errors, world_size
from megatron_aia.config.flags import parse_options
from megatron_aia.measurement.options import MeasureOptions
from megatron_aia.runtime.log import quiet_imports
from megatron_aia.runtime.versions import check_versions


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    with one_line_errors(ValueError, OSError, ImportError):
        options = parse_options(MeasureOptions, arguments, __doc__, prints=is_rank_0())
        check_versions()
        quiet_imports()
        from megatron_aia.measurement.command import measure_model  # heavy: torch and megatron-core

        summary = measure_model(options, world_size())
        if is_rank_0():
            print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
