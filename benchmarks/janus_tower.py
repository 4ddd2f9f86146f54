"""What Janus-Pro's image tower costs beside its decoder: one image against one decoder layer.

The published shapes of Janus-Pro-7B, fp32, one process, random weights:

    python benchmarks/janus_tower.py [--rounds 5]
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from megatron_aia.cli import one_line_errors
from megatron_aia.config import AIAConfig, ParallelConfig
from megatron_aia.config.flags import parse_options
from megatron_aia.models import load_model_spec, preset_table
from megatron_aia.models.backbone import packed_causal_mask
from megatron_aia.runtime.parallel import create_parallel, initialize_process_group


@dataclass
class Options:
    rounds: int = 5
    """Paired measurements."""
    tokens: int = 750
    """Of an understanding sample: 576 slots and some text."""


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    with one_line_errors():
        options = parse_options(Options, description=__doc__)
    preset = preset_table()["janus_pro_7b"].build()
    config = replace(
        preset,
        # One decoder layer and little vocabulary: what is compared fits a small machine.
        model=replace(preset.model, num_layers=1, text_vocab_size=256),
        aia=AIAConfig(aia=False),
        parallel=ParallelConfig(tensor_model_parallel_size=1, pipeline_model_parallel_size=1),
        training=replace(preset.training, bf16=False),
    )
    initialize_process_group(1)
    parallel = create_parallel(config.parallel, 1, seed=0)
    model = load_model_spec("janus_pro").build(config, parallel, 0)
    tower = model.vision_model.requires_grad_(False)
    torch.nn.init.normal_(tower.position_embedding, std=0.02)
    image = torch.randint(256, (1, 3, 384, 384), dtype=torch.uint8)
    hidden = torch.randn(options.tokens, 1, config.model.hidden_size, requires_grad=True)
    positions = torch.arange(options.tokens)[None]
    mask, angles = packed_causal_mask(torch.zeros_like(positions)), model._rotary_angles(positions)

    def layer() -> None:
        model.decoder(hidden, mask, rotary_pos_emb=angles).sum().backward()

    ratios = []
    for number in range(options.rounds + 1):
        pair = seconds(lambda: tower(image)), seconds(layer)
        if number:  # the first warms up
            ratios.append(pair[0] / pair[1])
            print(f"tower {pair[0]:.2f} s, decoder layer {pair[1]:.2f} s, ratio {ratios[-1]:.2f}")
    weights = sum(parameter.numel() for parameter in tower.parameters())
    print(f"tower: {weights:,} weights, {2 * weights / 1e9:.2f} GB in bf16")
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
