"""Compare the files of checkpoints with the checksums that were made when they were written.

python tools/verify_checkpoint.py RUN [--all]

RUN is a checkpoint, or the folder of a run, whose newest is taken. The exit code is 1 where a file
is damaged or missing.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Optional

from megatron_aia.checkpoint.folder import complete_checkpoints, find_checkpoint
from megatron_aia.checkpoint.manifest import find_damage
from megatron_aia.checkpoint.options import VerifyCheckpointOptions
from megatron_aia.checkpoint.run_state import read_sums
from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options
from megatron_aia.runtime.workers import map_in_processes

EXIT_DAMAGE = 1


def verify_files(path: Path, num_workers: int) -> tuple[bool, str]:
    """Return whether a checkpoint is whole, and a line about it."""
    try:
        sums = read_sums(path)
    except ValueError as error:
        return False, str(error)
    if sums is None:
        return True, f"{path}: of an earlier version, without checksums; nothing was compared"
    find = partial(find_damage, path, sums, size=num_workers)
    found = list(map_in_processes(find, range(num_workers), num_workers, "verify", "shares"))
    damage = next((each for each in found if each), "")
    size = sum(length for length, _ in sums.values())
    return not damage, damage or f"{path}: {len(sums)} files, {size / 1e9:.3f} GB, all as written"


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    with one_line_errors(ValueError, OSError):
        options = parse_options(VerifyCheckpointOptions, arguments, __doc__)
        if not options.checkpoints:
            raise ValueError("no checkpoint is named; see --help")
        paths = []
        for folder in options.checkpoints:
            newest = find_checkpoint(folder)
            paths += (options.all and complete_checkpoints(folder)) or [newest]
        results = [verify_files(path, options.num_workers) for path in paths]
        print("\n".join(line for _, line in results))
    return 0 if all(is_whole for is_whole, _ in results) else EXIT_DAMAGE


if __name__ == "__main__":
    sys.exit(main())
