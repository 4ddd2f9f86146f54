"""Time and memory of a measured sample: the forward pass alone, measured, and by eager maps.

    python benchmarks/measure_intensity.py [--tokens 2048 8192] [--rounds 3]

A Llama of random weights in fp32. Each side runs in a process of its own; the sides take turns.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_aia.cli import one_line_errors
from megatron_aia.config.flags import parse_options
from megatron_aia.measurement.recorder import IntensityRecorder, IntensityTerm

SIDES = ("forward", "measured", "eager maps")
LAYERS = 2


@dataclass
class Options:
    tokens: tuple[int, ...] = (2048, 8192)
    """Of a sample."""
    rounds: int = 3
    """Turns of each side."""
    side: str = ""
    """Set by this script: what this process runs."""


def run_side(side: str, tokens: int) -> dict[str, Any]:
    """Run a side once to warm up and once measured."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": 512, "hidden_size": 512, "intermediate_size": 1376},
        **{"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2},
        max_position_embeddings=tokens,
        attn_implementation="eager" if side == "eager maps" else "sdpa",
    )
    model = LlamaForCausalLM(config).eval()
    inputs = {"input_ids": torch.randint(0, 512, (1, tokens)), "logits_to_keep": 1}
    term = IntensityTerm(0, torch.arange(tokens // 2, tokens), torch.arange(tokens // 4))

    def call() -> list[float]:
        if side == "measured":
            return IntensityRecorder(model).measure(inputs, [term])[0].tolist()
        maps = model(**inputs, use_cache=False, output_attentions=side == "eager maps").attentions
        if side == "forward":
            return []
        parts = (m[0][:, term.queries][:, :, term.keys] for m in maps)
        return [part.sum(-1).double().mean().item() for part in parts]

    with torch.no_grad():
        model(inputs["input_ids"][:, :64])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        found = call()
        seconds = time.process_time() - start
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "megabytes": more / 1024, "intensity": found}


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    if options.side:
        print(json.dumps(run_side(options.side, options.tokens[0])))
        return
    print("| tokens | side | CPU seconds | ratio to forward | MB | difference of intensities |")
    print("|---|---|---|---|---|---|")
    for tokens in options.tokens:
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side in SIDES:
                command = [sys.executable, str(Path(__file__)), "--side", side]
                command += ["--tokens", str(tokens)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                found[side].append(json.loads(done.stdout))
        for side in SIDES:
            pairs = zip(found[side], found["forward"], strict=True)
            ratios = [one["seconds"] / forward["seconds"] for one, forward in pairs]
            exact = found["eager maps"][0]["intensity"]
            own = found[side][0]["intensity"]
            difference = max((abs(a - b) for a, b in zip(own, exact, strict=False)), default=0.0)
            print(
                f"| {tokens} | {side} | {median(o['seconds'] for o in found[side]):.2f} | "
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
                f"{median(o['megabytes'] for o in found[side]):.0f} | "
                f"{f'{difference:.1e}' if own else ''} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
