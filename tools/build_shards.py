"""Make a data folder for training: from records and pictures, or the demo's (--demo).

A build that was killed goes on where it was when the same command starts again.

python tools/build_shards.py --records INPUT --output DIR [--image-tokenizer FOLDER_OR_NPZ]
python tools/build_shards.py --demo --output DIR [--overwrite] [--model FAMILY]
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from megatron_aia.building.build import build_shards
from megatron_aia.building.demo import build_demo
from megatron_aia.building.dropped import DROPPED_FILE
from megatron_aia.building.options import BuildOptions
from megatron_aia.config.flags import parse_options
from megatron_aia.models import families, load_family
from megatron_aia.shards.description import read_codebook_size

EXIT_USER_ERROR = 2


@dataclass
class DemoOptions:
    """Photographs of installed packages with their own codebook and text tokeniser."""

    output: Path
    """Folder to make."""
    overwrite: bool = False
    """Replace a data folder at the output."""
    model: str = families()[0].name
    """Family whose tokens and images to write."""
    grid_side: int = 0
    """Codes along a side of an image; 0 takes the family's own."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if "--demo" in arguments:
            rest = [argument for argument in arguments if argument != "--demo"]
            demo = parse_options(DemoOptions, rest, __doc__)
            num_samples = build_demo(
                demo.output, load_family(demo.model), demo.overwrite, demo.grid_side
            )
            print(_describe(demo.output, num_samples))
        else:
            options = parse_options(BuildOptions, arguments, __doc__)
            num_samples, dropped = build_shards(options)
            if dropped.reasons:
                print(dropped.table(), file=sys.stderr)
                print(f"all of them: {options.output / DROPPED_FILE}", file=sys.stderr)
            print(_describe(options.output, num_samples))
            if read_codebook_size(options.output) == 0:
                print("every image is stored as a picture; train on them with --image-tokenizer")
    except (ValueError, OSError) as error:
        print(f"build_shards: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def _describe(output: Path, num_samples: dict[str, int]) -> str:
    counts = ", ".join(f"{number} {task}" for task, number in sorted(num_samples.items()))
    return f"{output}: {counts}"


if __name__ == "__main__":
    sys.exit(main())
