"""Compare measured intensities: a table, curves, and how samples spread.

python tools/compare_intensity.py [NAME=]PATH ... --output DIR [--overlay] [--run RUN]

A PATH is an intensity.jsonl, its folder, or a CSV of a curve.
"""

import sys
from collections.abc import Sequence
from typing import Optional

from megatron_aia.aia.profile import load_profile
from megatron_aia.analysis.records import read_records
from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options
from megatron_aia.measurement.figures import plot_models, plot_overlay, plot_spread, plot_training
from megatron_aia.measurement.options import CompareOptions
from megatron_aia.measurement.table import (
    MeasuredModel,
    check_model_names,
    intensity_table,
    read_measured,
)


def draw(options: CompareOptions, models: Sequence[MeasuredModel]) -> None:
    """Draw the figures into the folder of the output."""
    profile = None if options.profile is None else load_profile(options.profile)
    figures = {}
    if models:
        plot = plot_overlay if options.overlay else plot_models
        figures["curves.png"] = plot(models, options.by_layer, profile)
    for model in models:
        if model.samples:
            figures[f"spread_{model.name}.png"] = plot_spread(model)
    if options.run is not None:
        figures["training.png"] = plot_training(read_records(options.run))
    options.output.mkdir(parents=True, exist_ok=True)
    for file_name, figure in figures.items():
        figure.savefig(options.output / file_name)
    print(f"wrote {', '.join(str(options.output / name) for name in figures)}")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    with one_line_errors(ValueError, OSError):
        options = parse_options(CompareOptions, arguments, __doc__)
        models = [read_measured(text) for text in options.models]
        if not models and options.run is None:
            raise ValueError("nothing to compare; give [NAME=]PATH, or --run; see --help")
        check_model_names(models)
        if models:
            print(intensity_table(models, options.markdown))
        draw(options, models)
    return 0


if __name__ == "__main__":
    sys.exit(main())
