"""Convert a Hugging Face checkpoint to one that --load of the training script takes.

python tools/convert_hf_to_megatron.py --hf-path DIR --save DIR [--verify] [--overwrite]
"""

import sys
from collections.abc import Sequence
from typing import Optional

from megatron_aia.checkpoint.conversion import ImportOptions
from megatron_aia.config.flags import parse_options
from megatron_aia.runtime.log import quiet_imports
from megatron_aia.runtime.versions import check_versions

EXIT_USER_ERROR = 2


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code."""
    try:
        options = parse_options(ImportOptions, arguments, __doc__)
        check_versions()
        quiet_imports()
        from megatron_aia.checkpoint.import_hf import import_checkpoint  # heavy: not for --help

        print(import_checkpoint(options))
    except (ValueError, OSError) as error:
        print(f"convert_hf_to_megatron: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
