"""torchrun, without its own stack below a mistake of the user that rank 0 has told in one line."""

import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

_USER_ERROR = 2
"""Exit code of a process that has said what is wrong."""

if __name__ == "__main__":
    try:
        main()
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode != _USER_ERROR:
            raise
        sys.exit(_USER_ERROR)
