"""Measure how alike a model arranges images and their prompts, in every layer.

python tools/measure_alignment.py --hf-path FOLDER --data-path SHARDS --output DIR [--samples 500]
torchrun --nproc-per-node 8 tools/measure_alignment.py --load RUN --data-path SHARDS --output DIR

Mutual k nearest neighbours (UniFork, section 3.1): of the k samples whose images are nearest to a
sample's image, the share that is also among the k whose prompts are nearest to its prompt.
"""

import sys
from collections.abc import Sequence
from typing import Optional

from megatron_aia.cli import is_rank_0, one_line_errors, world_size
from megatron_aia.config.flags import parse_options
from megatron_aia.measurement.options import AlignmentOptions
from megatron_aia.runtime.log import quiet_imports
from megatron_aia.runtime.versions import check_versions


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    with one_line_errors(ValueError, OSError, ImportError):
        options = parse_options(AlignmentOptions, arguments, __doc__, prints=is_rank_0())
        check_versions()
        quiet_imports()
        from megatron_aia.measurement.command import align_model  # heavy: torch, megatron-core

        summary = align_model(options, world_size())
        if is_rank_0():
            print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
