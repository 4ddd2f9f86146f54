"""Fit a target profile to measured intensities.

python tools/fit_profile.py --intensity GENERATION [UNDERSTANDING] --output my_profile.yaml

Then train to it: --aia-profile my_profile.yaml.
"""

import sys
from collections.abc import Sequence
from typing import Optional

from megatron_aia.aia.profile import load_profile
from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options
from megatron_aia.measurement.curves import read_curves
from megatron_aia.measurement.fit import FitSettings, fit_profile
from megatron_aia.measurement.options import FitOptions
from megatron_aia.measurement.profile_file import plot_fit, write_profile


def _num_stages(text: str) -> Optional[int]:
    if text == "auto":
        return None
    if not text.isdigit() or text == "0":
        raise ValueError(f"--stages {text}: give auto, or a whole number from 1")
    return int(text)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    with one_line_errors(ValueError, OSError):
        options = parse_options(FitOptions, arguments, __doc__)
        if any(not 0 <= delta < float("inf") for delta in options.delta):
            raise ValueError(f"--delta {options.delta}: a threshold is 0 or more")
        curves = [curve for path in options.intensity for curve in read_curves(path)]
        settings = FitSettings(
            stages=_num_stages(options.stages),
            joint=options.joint,
            penalty=options.penalty,
            grain=options.round,
            deltas=options.delta,
        )
        base = None if options.base_profile is None else load_profile(options.base_profile)
        fitted = fit_profile(options.name or options.output.stem, curves, settings, base)
        drawn = plot_fit(fitted) if options.figure else None
        write_profile(fitted, options.output)
        written = [options.output]
        if drawn is not None:
            written.append(options.output.with_suffix(".png"))
            drawn.savefig(written[-1])
        for line in (*fitted.notes, *(f"warning: {text}" for text in fitted.warnings)):
            print(line)
        print(f"wrote {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
