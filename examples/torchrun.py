"""torchrun, with three things changed.

A mistake of the user, which rank 0 has told in one line, is not buried below torchrun's own stack.
Processes that are told to end get ten minutes to save (``SECONDS_TO_SAVE``), not thirty seconds,
where torchrun can wait: PyTorch 2.13 and newer. And ``--max-restarts`` restarts: otherwise the
processes of a restart find the addresses of those before them (pytorch/pytorch issue 135712).
"""

import os
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, main

_USER_ERROR = 2
"""Exit code of a process that has said what is wrong."""

_SECONDS_TO_SAVE = "600"
_SHUTDOWN = "--shutdown-timeout"


def with_time_to_save(argv: list[str]) -> list[str]:
    """Return torchrun's arguments with a time-out of its shutdown, unless there is one."""
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    given = [word.split("=")[0].replace("_", "-") for word in argv]
    if _SHUTDOWN not in known or _SHUTDOWN in given:
        return argv
    return [_SHUTDOWN, os.environ.get("SECONDS_TO_SAVE", _SECONDS_TO_SAVE), *argv]


if __name__ == "__main__":
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    arguments = with_time_to_save(sys.argv[1:])
    if len(arguments) > len(sys.argv[1:]):
        # The processes warn where a save takes longer.
        os.environ.setdefault("SECONDS_TO_SAVE", _SECONDS_TO_SAVE)
    try:
        main(arguments)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode != _USER_ERROR:
            raise
        sys.exit(_USER_ERROR)
