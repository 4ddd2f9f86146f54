"""Index data folders and count their tokens before a run, which then starts at once.

Takes the flags of a run and prints what it would log of its data:

    python tools/index_data.py --preset emu3_8b --data-path shards --tokenizer-model Emu3-Chat-hf
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without `pip install` too

from megatron_aia.cli import parse_with_notes
from megatron_aia.models import load_model_spec
from megatron_aia.runtime.log import configure_logging, quiet_imports
from megatron_aia.runtime.versions import check_versions


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 2 if the data cannot be used, with one line on standard error."""
    try:
        check_versions()
        quiet_imports()
        from megatron_aia.training.setup import open_data

        command_line = parse_with_notes(sys.argv[1:] if argv is None else argv)
        for note in command_line.notes:
            print("note:", note, file=sys.stderr)
        config = command_line.config
        configure_logging()
        data = open_data(config, load_model_spec(config.model.model))
        for sample in data.counted_corrupt():
            print("corrupt:", sample.reason)
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    print("\n".join(data.describe()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
