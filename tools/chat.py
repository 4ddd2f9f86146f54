"""Talk with a checkpoint of this project, or have it answer a file of questions.

python tools/chat.py --load RUN [--image FILE] [--system-prompt TEXT]
torchrun --nproc-per-node 8 tools/chat.py --load RUN --ask QUESTIONS.jsonl --answers ANSWERS.jsonl

Processes are replicas that share the questions, unless the layout flags give several to one model.
A command that was stopped goes on where it was when it starts again.
"""

import sys
from collections.abc import Sequence
from typing import Optional

from megatron_aia.cli import is_rank_0, one_line_errors, world_size
from megatron_aia.config.flags import parse_options
from megatron_aia.generation.options import ChatOptions
from megatron_aia.runtime.log import quiet_imports
from megatron_aia.runtime.versions import check_versions


class Console:
    """The terminal this process was started from."""

    def read(self) -> Optional[str]:
        """Return the next line; None at the end."""
        return sys.stdin.readline() or None

    def write(self, text: str) -> None:
        """Show a part of a line."""
        print(text, end="", flush=True)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    with one_line_errors(ValueError, OSError):
        options = parse_options(ChatOptions, arguments, __doc__, prints=is_rank_0())
        check_versions()
        quiet_imports()
        from megatron_aia.generation.command import chat  # heavy: torch and megatron-core

        summary = chat(options, world_size(), Console())
        if is_rank_0() and summary:
            print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
