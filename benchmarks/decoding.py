"""Time and memory of a drawn picture: keys and values kept, computed again, and by Transformers.

    python benchmarks/decoding.py --folder DIR [--rounds 3]

Random weights, fp32, guidance 3, greedy. Each side draws the same prompts in a process of its own;
the sides take turns, so that what else the machine does falls on all of them. All must draw the
same codes.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from decoding_sides.models import Sizes, save

from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options

HERE = Path(__file__).resolve().parent
SIDES = ("kept", "Transformers", "computed again")


@dataclass
class Options:
    folder: Path
    """Empty or new; for the models."""
    rounds: int = 3
    """Turns of each side."""
    layers: int = 4
    hidden: int = 512
    side: int = 16
    """Rows and columns of codes."""
    pictures: tuple[int, ...] = (1, 4)
    """Of a batch, up to 4."""


def make_models(options: Options, family: str) -> Path:
    """Write a model for both: in Transformers' form, and converted."""
    folder = options.folder / family
    save(family, Sizes(options.layers, options.hidden, options.side), folder / "hf")
    tool = HERE.parent / "tools" / "convert_hf_to_megatron.py"
    command = [sys.executable, tool, "--hf-path", folder / "hf", "--save", folder / "megatron"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def draw(side: str, folder: Path, family: str, pictures: int, grid: int) -> dict[str, Any]:
    """Have one side draw; return what it measured."""
    script = [sys.executable, HERE / "decoding_sides" / "draw.py"]
    command = [*map(str, script), side, str(folder), family, str(pictures), str(grid)]
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    # Freed memory goes back at once: what a process holds is what it uses.
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = {**os.environ, "PYTHONPATH": path, **given_back}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| model | pictures | side | s a picture | ratio to kept | MB a picture | codes |")
    print("|---|---|---|---|---|---|---|")
    for family in ("emu3", "janus_pro"):
        folder = make_models(options, family)
        for pictures in options.pictures:
            sides = SIDES if pictures == 1 else SIDES[:2]  # the third takes minutes a round
            found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(options.rounds):
                for side in sides:
                    found[side].append(draw(side, folder, family, pictures, options.side))
            for side in sides:
                seconds = median(one["seconds"] for one in found[side]) / pictures
                ratios = [
                    other["seconds"] / kept["seconds"]
                    for other, kept in zip(found[side], found["kept"], strict=True)
                ]
                megabytes = median(one["bytes"] for one in found[side]) / pictures / 1e6
                same = all(one["tokens"] == found["kept"][0]["tokens"] for one in found[side])
                spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                print(
                    f"| {family} | {pictures} | {side} | {seconds:.2f} | {spread} | "
                    f"{megabytes:.0f} | {'equal' if same else 'OTHERS'} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
