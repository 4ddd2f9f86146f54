"""One table of evaluations beside published numbers: text or Markdown, and bars.

python tools/benchmark_report.py NAME=DIR[,DIR] ... [--reference aia_v2] [--markdown] [--plot FILE]

A DIR is the --output of tools/evaluate.py. A number that no judge gave is not printed.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options
from megatron_aia.config.value_types import POSITIONAL
from megatron_aia.evaluation.references import read_references
from megatron_aia.evaluation.report import draw_bars, row_of_reference, row_of_results, table
from megatron_aia.evaluation.result import read_result


@dataclass
class ReportOptions:
    """Settings of the report."""

    models: Annotated[tuple[str, ...], POSITIONAL] = ()
    """A row each: NAME=DIR, or NAME=DIR,DIR with several benchmarks of one checkpoint."""
    reference: tuple[str, ...] = ()
    """Tables of published numbers to show beside them."""
    markdown: bool = False
    """Write Markdown."""
    plot: Optional[Path] = None
    """PNG file to draw bars to."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    with one_line_errors(ValueError, OSError):
        options = parse_options(ReportOptions, arguments, __doc__)
        rows = []
        for text in options.models:
            name, equals, folders = text.partition("=")
            if not (name and equals and folders):
                raise ValueError(f"{text}: write NAME=DIR, or NAME=DIR,DIR")
            results = [read_result(Path(folder)) for folder in folders.split(",")]
            rows.append(row_of_results(name, results))
        for name in options.reference:
            rows += [row_of_reference(reference) for reference in read_references(name)]
        if not rows:
            raise ValueError("nothing to show; give NAME=DIR, or --reference; see --help")
        print(table(rows, options.markdown))
        if options.plot is not None:
            draw_bars(rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
