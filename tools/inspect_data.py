"""Show what a run reads at a position: tokens, labels, roles and images of its samples.

Takes the flags of a run, and:

  --position P       first position to show (default 0)
  --count N          number of positions to show (default 1)
  --save-image DIR   also write the images of these samples there
  --plot FILE.png    also draw lengths and padding of the steps from there on
  --plot-steps N     number of these steps (default 20)

python tools/inspect_data.py --preset emu3_demo --data-path demo_output/data --position 3
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Optional, TypeVar

from megatron_aia.cli import parse_with_notes
from megatron_aia.models import load_model_spec
from megatron_aia.runtime.log import quiet_imports
from megatron_aia.runtime.versions import check_versions

if TYPE_CHECKING:
    from megatron_aia.config import Config
    from megatron_aia.data.loader import StepLoader
    from megatron_aia.models.spec import SampleEncoder
    from megatron_aia.shards.image_tokenizer import ImageTokenizer

EXIT_USER_ERROR = 2
_T = TypeVar("_T")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
    try:
        options, flags_of_run = _parser().parse_known_args(arguments)
        command_line = parse_with_notes(flags_of_run)
        for note in command_line.notes:
            print("note:", note, file=sys.stderr)
        _inspect(options, command_line.config)
    except (ValueError, OSError) as error:
        print("inspect_data:", " ".join(str(error).split()), file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ValueError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--position", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--save-image", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--plot-steps", type=int, default=20)
    return parser


def _inspect(options: argparse.Namespace, config: "Config") -> None:
    for flag, value, least in (
        ("--position", options.position, 0),
        ("--count", options.count, 0),
        ("--plot-steps", options.plot_steps, 1),
    ):
        if value < least:
            raise ValueError(f"{flag} {value} must be at least {least}")
    check_versions()
    quiet_imports()
    from megatron_aia.training.setup import open_data  # heavy: torch and megatron-core

    data = open_data(config, load_model_spec(config.model.model))
    steps = options.plot_steps * data.global_batch_size if options.plot else 0
    _check_end(data, options.position, max(options.count, steps))
    for position in range(options.position, options.position + options.count):
        _show(config, data, position, options.save_image)
    if options.plot:
        _plot(data, options.position, options.plot_steps, options.plot)


def _check_end(data: "StepLoader", position: int, count: int) -> None:
    """Check that the phases of the mixture are long enough."""
    end = data.mixture.num_samples
    if end is not None and position + count > end:
        raise ValueError(
            f"--position {position} and the {count} samples from there on go beyond the end of the "
            f"mixture, which has {end}; lower --position, --count or --plot-steps"
        )


def _show(
    config: "Config", data: "StepLoader", position: int, image_folder: Optional[Path]
) -> None:
    from megatron_aia.analysis.sample_images import save_images
    from megatron_aia.analysis.sample_text import format_sample

    placed = _read(data, partial(data.read_placed, position))
    folder = data.mixture.indexes[placed.address.index_number].folder
    in_color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    prompt: SampleEncoder = data.encoder  # type: ignore[assignment]
    origin = f"{folder}, source {data.mixture.pools[placed.address.source].name}"
    print(format_sample(placed, position, origin, prompt, in_color))
    if image_folder:
        tokenizer = _decoder(config, Path(str(folder)))
        for file in save_images(placed.raw, image_folder, f"position-{position}", tokenizer):
            print(f"  {file}")


def _read(data: "StepLoader", read: Callable[[], _T]) -> _T:
    """Read as a run does, with replacements for corrupt samples, and name these."""
    from megatron_aia.data.replacements import CorruptSamplesFound

    while True:
        try:
            return read()
        except CorruptSamplesFound as found:
            for sample in found.samples:
                print("corrupt:", sample.reason, file=sys.stderr)
            data.mark_corrupt(found.samples)


def _decoder(config: "Config", data_folder: Path) -> "ImageTokenizer | None":
    """Return what decodes codes: that of the run, or the codebook that lies beside the shards."""
    from megatron_aia.models.image_tokenizers import load_image_tokenizer

    codebook = data_folder / "codebook.npz"
    path = config.data.image_tokenizer or (codebook if codebook.exists() else None)
    return load_image_tokenizer(path) if path else None


def _plot(data: "StepLoader", position: int, num_steps: int, file: Path) -> None:
    from megatron_aia.analysis.data_plots import measure_step, plot_data

    size = data.global_batch_size
    first_positions = range(position, position + size * num_steps, size)
    steps = [measure_step(_read(data, partial(data.step, first))) for first in first_positions]
    plot_data(steps, data.seq_length).savefig(file)
    print(file)


if __name__ == "__main__":
    sys.exit(main())
