"""Make one checkpoint of two runs that trained a branch each of a model that forks.

python tools/merge_branches.py --understanding DIR --generation DIR --save DIR
"""

import sys
from collections.abc import Sequence
from typing import Optional

from megatron_aia.checkpoint.conversion import MergeOptions
from megatron_aia.config.flags import parse_options
from megatron_aia.runtime.log import quiet_imports
from megatron_aia.runtime.versions import check_versions

EXIT_USER_ERROR = 2


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code."""
    try:
        options = parse_options(MergeOptions, arguments, __doc__)
        check_versions()
        quiet_imports()
        from megatron_aia.checkpoint.merge import merge_branches  # heavy: not for --help

        print(merge_branches(options))
    except (ValueError, OSError) as error:
        print(f"merge_branches: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
