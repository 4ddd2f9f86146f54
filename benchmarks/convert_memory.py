"""Peak memory of a conversion to Megatron and back, as a ratio to the checkpoint's size.

Random bf16 weights in the shapes of Emu3-8B with fewer layers:

    python benchmarks/convert_memory.py --folder DIR [--layers 1]
"""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from megatron_aia.checkpoint.tensor_files import TensorWriter
from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options
from megatron_aia.models import load_hf_format, preset_table
from megatron_aia.models.hugging_face import HFTarget

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@dataclass
class Options:
    folder: Path
    """Empty or new; needs three times the size of the checkpoint."""
    layers: int = 1
    """Decoder layers; the vocabulary is 3.0 GB, a layer 0.4 GB."""


def write_checkpoint(folder: Path, layers: int) -> int:
    model = replace(preset_table()["emu3_8b"].build().model, num_layers=layers)
    hf_format = load_hf_format("emu3")
    table = hf_format.weight_map(model, hf_format.export_names("original", False))
    folder.mkdir(parents=True)
    with TensorWriter(folder, shard_bytes=1_000_000_000) as writer:
        for entry in table.values():
            for name, shape in entry.sources.items():
                writer.add(name, torch.randn(shape, dtype=torch.bfloat16))
    config = hf_format.document(HFTarget(model, "original", "bfloat16", None, {}, folder))
    (folder / "config.json").write_text(json.dumps(config))
    return writer.num_bytes


def peak_of(*command: object) -> int:
    """Return the largest resident memory of a new process, or of one of its children, in bytes."""
    script = (
        "import resource, subprocess, sys; "
        "subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"
    )
    arguments = [sys.executable, "-c", script, sys.executable, *map(str, command)]
    result = subprocess.run(arguments, check=True, text=True, stderr=subprocess.PIPE)
    return int(result.stderr.splitlines()[-1]) * 1024


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    hf, ours, back = (options.folder / name for name in ("hf", "ours", "back"))
    size = write_checkpoint(hf, options.layers)
    peaks = {
        "to Megatron": peak_of(
            TOOLS / "convert_hf_to_megatron.py", "--hf-path", hf, "--save", ours
        ),
        "to Hugging Face": peak_of(
            *(TOOLS / "convert_megatron_to_hf.py", "--load", ours, "--save", back),
            *("--hf-layout", "original"),
        ),
    }
    for direction, peak in peaks.items():
        print(f"{direction}: peak {peak / 1e9:.2f} GB, checkpoint {size / 1e9:.2f} GB", end="")
        print(f", ratio {peak / size:.2f}")


if __name__ == "__main__":
    main()
