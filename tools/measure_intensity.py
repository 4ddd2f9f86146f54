"""Measure how much the answers of a Transformers model attend to images, in every layer.

python tools/measure_intensity.py --hf-path FOLDER --data-path SHARDS --output DIR [--samples 100]

Exact, with the model's own code. Then: tools/compare_intensity.py, tools/fit_profile.py.
"""

import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Optional

from tqdm import tqdm

from megatron_aia.aia.roles import Task
from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options
from megatron_aia.measurement.options import MeasureOptions
from megatron_aia.measurement.summary import check_enough, check_new_folder, write_measurement
from megatron_aia.runtime.device import device_name
from megatron_aia.runtime.optional import import_optional
from megatron_aia.shards.index import open_index


def conditions(options: MeasureOptions, name: str, config_hash: str) -> dict[str, Any]:
    """Return what the numbers depend on."""
    versions = {
        package: importlib.metadata.version(package) for package in ("torch", "transformers")
    }
    flags = {key: value for key, value in asdict(options).items() if value is not None}
    return {
        "model": name,
        "config_hash": config_hash,
        "method": "exact, through Transformers' attention interface (sdpa)",
        "device": device_name(),
        "versions": versions,
        "flags": {key: str(flags[key]) for key in flags},
    }


def describe(summary: dict[str, Any]) -> list[str]:
    """Return a line a task."""
    lines = []
    for task, found in summary["tasks"].items():
        left_out = "".join(f"; {count} {reason}" for reason, count in found["inactive"].items())
        total = found["samples"] + sum(found["inactive"].values())
        known = [mean for mean in found["mean"] if mean is not None]
        error = found["largest_standard_error"]
        lines.append(f"{task}: {found['samples']} of {total} samples measured{left_out}")
        lines.append(
            f"mean {sum(known) / len(known):.3f}, largest standard error "
            f"{'-' if error is None else format(error, '.3f')}"
        )
    return lines


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code; what a user can get wrong is one line on stderr."""
    with one_line_errors(ValueError, OSError, ImportError):
        options = parse_options(MeasureOptions, arguments, __doc__)
        check_new_folder(options.output)
        import_optional("transformers", "hf")
        from megatron_aia.measurement import hugging_face

        index = open_index(options.data_path)
        numbers = hugging_face.choose_samples(index, Task.UNDERSTANDING, options.samples)
        model, processor = hugging_face.load_model(options.hf_path, options.dtype)
        name = options.name or options.hf_path.resolve().name
        with tqdm(total=len(numbers), unit="sample", disable=None) as bar:
            found = hugging_face.measure_understanding(
                *(model, processor, name, index, numbers),
                image_ids=options.image_token_ids,
                max_length=options.max_length,
                progress=lambda done: bar.update(done - bar.n),
            )
        check_enough(found)
        hashed = hugging_face.config_hash(model)
        summary = write_measurement(options.output, found, conditions(options, name, hashed))
        print("\n".join(describe(summary)))
        print(f"wrote {options.output}/intensity.jsonl, {options.output}/summary.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
