"""Convert a checkpoint of this project to a Hugging Face folder.

python tools/convert_megatron_to_hf.py --load DIR --save DIR --hf-layout {original,transformers}
"""

import sys
from collections.abc import Sequence
from typing import Optional

from megatron_aia.checkpoint.conversion import ExportOptions
from megatron_aia.config.flags import parse_options
from megatron_aia.runtime.log import quiet_imports
from megatron_aia.runtime.versions import check_versions

EXIT_USER_ERROR = 2


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code."""
    try:
        options = parse_options(ExportOptions, arguments, __doc__)
        check_versions()
        quiet_imports()
        from megatron_aia.checkpoint.export_hf import export_checkpoint  # heavy: not for --help

        print(export_checkpoint(options))
    except (ValueError, OSError) as error:
        print(f"convert_megatron_to_hf: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
