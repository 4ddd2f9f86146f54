"""Draw pictures with a checkpoint of this project, alone or under torchrun.

python tools/generate.py --load RUN --prompt "a red boat" --output DIR
torchrun --nproc-per-node 8 tools/generate.py --load RUN --prompts FILE --output DIR

Processes are replicas that share the prompts, unless the layout flags give several to one model.
A command that was stopped goes on where it was when it starts again. What is drawn at random
depends on --seed, the prompt and the number of its picture alone.
"""

import sys
from collections.abc import Sequence
from typing import Optional

from megatron_aia.cli import is_rank_0, one_line_errors, world_size
from megatron_aia.config.flags import parse_options
from megatron_aia.generation.options import GenerateOptions
from megatron_aia.runtime.log import quiet_imports
from megatron_aia.runtime.versions import check_versions


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    with one_line_errors(ValueError, OSError):
        options = parse_options(GenerateOptions, arguments, __doc__, prints=is_rank_0())
        check_versions()
        quiet_imports()
        from megatron_aia.generation.command import generate  # heavy: torch and megatron-core

        summary = generate(options, world_size())
        if is_rank_0():
            print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
